"""Of what no metric can be computed."""

import pytest
import torch
from conftest import refuses

from promptswitch_nb.metrics import markdown_table
from promptswitch_nb.metrics import metrics_from_similarity
from promptswitch_nb.metrics import place
from promptswitch_nb.metrics import retrieval_metrics

TEXTS, VIDEOS, OWNER = torch.eye(4), torch.eye(4)[:3], torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((TEXTS, VIDEOS[:, :2], OWNER), "same width E; got (4, 4) and (3, 2)"),
        ((TEXTS, VIDEOS, OWNER[:3]), "each of the 4 captions"),
        ((TEXTS, VIDEOS, OWNER.float()), "torch.float32"),
        ((TEXTS[:0], VIDEOS, OWNER[:0]), "each of the 0 captions"),
        ((TEXTS, VIDEOS, OWNER + 1), "from 1 to 3, but there are 3 videos"),
        ((TEXTS, VIDEOS, torch.tensor([0, 0, 2, 2])), "1 of 3 videos have no caption"),
        ((TEXTS.log(), VIDEOS, OWNER), "texts: 4 of 4 rows hold NaN or infinity"),
        ((TEXTS, VIDEOS.log(), OWNER), "videos: 3 of 3 rows hold NaN or infinity"),
    ],
    ids=[
        *("widths", "too few owners", "owners that are no integers", "no caption"),
        *("an owner outside", "a video without a caption", "texts of NaN", "videos of NaN"),
    ],
)
def test_vectors(args, message):
    refuses(retrieval_metrics, *args, contains=message)


def test_similarities():
    refuses(metrics_from_similarity, TEXTS[0], OWNER, contains="must be (Q,N)")


def test_the_row_that_holds_infinity_is_named():
    sims = torch.zeros(5, 3)
    sims[1, 2] = torch.inf
    message = "1 of 5 rows hold NaN or infinity, the first is row 1"
    refuses(place, sims, torch.tensor([0, 0, 1, 2, 2]), torch.arange(3), contains=message)


def test_a_row_of_another_length():
    message = "a row of 1 cells in a table of 2: ['x']"
    refuses(markdown_table, ["", "a"], [["x"]], contains=message)
