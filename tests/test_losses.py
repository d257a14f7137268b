"""What the losses and the word weights refuse."""

import pytest
import torch
from conftest import refuses

from promptswitch_nb.losses import caption
from promptswitch_nb.losses import contrastive
from promptswitch_nb.losses import contrastive_from_similarity
from promptswitch_nb.losses import tfidf

IDS = torch.tensor([[8, 0, 3, 9, 0, 0], [8, 0, 3, 9, 9, 9], [8, 1, 2, 3, 1, 9]])
LOGITS = torch.zeros(3, 5, 10)


def test_contrastive():
    refuses(contrastive, torch.eye(4), torch.eye(4)[:3], logit_scale=1, contains="same order")
    sims = torch.zeros(4, 3)
    message = "as many texts as videos"
    refuses(contrastive_from_similarity, sims, logit_scale=1, contains=message)


@pytest.mark.parametrize(
    ("logits", "ids", "options", "message"),
    [
        (LOGITS, IDS[:, :-1], {}, "logits must be (B,W-1,V) = (3,4,V)"),
        (torch.zeros(10, 10), IDS, {}, "or (11,V) for their predicted"),
        (LOGITS, IDS, dict(weights=torch.ones(7)), "weights must be (V,) = (10,)"),
        (LOGITS, IDS, dict(reduction="mean"), "'token_mean'"),
    ],
    ids=["words", "predicted tokens", "weights", "reduction"],
)
def test_caption(logits, ids, options, message):
    refuses(caption, logits, ids, end=9, contains=message, **options)


@pytest.mark.parametrize(
    ("videos", "vocab_size", "message"),
    [
        (torch.arange(2), 10, "3 captions, 2 videos"),
        (torch.zeros(3), 10, "at least two"),
        (torch.arange(3), 9, "outside of a vocabulary of 9"),
    ],
    ids=["a caption without a video", "one video", "a small vocabulary"],
)
def test_tfidf(videos, vocab_size, message):
    refuses(tfidf, IDS, videos, vocab_size=vocab_size, end=9, contains=message)
