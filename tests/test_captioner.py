"""What the captioning head and its decoding refuse."""

import pytest
import torch
from conftest import refuses
from torch import nn

from promptswitch_nb.captioner import CaptioningHead
from promptswitch_nb.captioner import beam
from promptswitch_nb.captioner import greedy

V, WIDTH = 9, 8


@pytest.fixture(scope="module")
def head() -> CaptioningHead:
    """Build a head that reads frame vectors wider than its words."""
    torch.manual_seed(0)
    return CaptioningHead(V, WIDTH, heads=2, layers=1, memory_width=12)


def test_sizes():
    refuses(
        CaptioningHead, V, WIDTH, layers=1, heads=3, contains="3 heads do not divide a width of 8"
    )
    embedding = torch.zeros(V, 4)
    options = dict(heads=2, layers=1, token_embedding=embedding)
    refuses(CaptioningHead, V, WIDTH, contains="shape (9, 4)", **options)


@pytest.mark.parametrize(
    ("texts", "memory", "message"),
    [
        ((2, 5, WIDTH), (2, 3, 9), "memory_width=12"),
        ((2, 5, WIDTH), (4, 3, 12), "2 captions but frame vectors of 4 videos"),
        ((2, 5, 9), (2, 3, 12), "token embeddings are 9 wide, the head 8"),
    ],
    ids=["memory", "videos", "texts"],
)
def test_inputs(head, texts, memory, message):
    refuses(head, torch.zeros(texts), torch.zeros(memory), contains=message)


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (beam, dict(max_len=3, beams=V + 1), "beams must be between 1 and 8 with"),
        (beam, dict(max_len=3, beams=0), "got 0"),
        (beam, dict(max_len=0), "max_len must be at least 1"),
        (greedy, dict(max_len=0), "max_len must be at least 1"),
    ],
    ids=["too many beams", "no beam", "beam of no word", "no word"],
)
def test_decoding(head, write, options, message):
    inputs = head, nn.Embedding(V, WIDTH), torch.zeros(2, 3, 12)
    refuses(write, *inputs, contains=message, start=V - 2, end=V - 1, **options)
