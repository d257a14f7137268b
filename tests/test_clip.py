"""What the towers refuse, in one sentence."""

import open_clip
import pytest
import torch
from conftest import refuses

from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import ClipTokenizer
from promptswitch_nb.clip import CLIPTowers


@pytest.fixture(scope="module")
def towers() -> CLIPTowers:
    """Build the tiny CLIP with CLIP's own tokenizer."""
    torch.manual_seed(0)
    return CLIPTowers(TINY_CONFIG, tokenizer=ClipTokenizer(24)).eval()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 3, 48, 48), "frames must be (B,F,3,48,48)"),
        (torch.zeros(1, 2, 3, 32, 32), "frames must be (B,F,3,48,48)"),
        (torch.zeros(0, 2, 3, 48, 48), "0 videos of 2 frames"),
        (torch.zeros(2, 0, 3, 48, 48), "2 videos of 0 frames"),
        (torch.zeros(1, 1, 3, 48, 48, dtype=torch.uint8), "must be normalised colours"),
    ],
    ids=["no frame axis", "another size", "no video", "no frame", "whole numbers"],
)
def test_frames(towers, frames, message):
    refuses(towers.video_tokens, frames, contains=message)


def test_texts(towers):
    refuses(towers.tokenize, [], contains="there are no texts")
    refuses(towers.embed_text, torch.zeros(1, 40).long(), contains="at most 24")
    refuses(CLIPTowers(TINY_CONFIG).tokenize, "a cat", contains="without a tokenizer")


def test_token_ids(towers):
    ids = towers.tokenize(["a cat jumps", "two dogs"])
    for wrong, message in [
        (ids[:0], "there are no texts"),
        (ids[0], "this one is (24,) of torch.int64"),
        (ids.float(), "of torch.float32"),
        (ids + 1, "token ids run from 1 to 49408"),
        (ids.clamp(max=9), "no end token"),
    ]:
        refuses(towers.encode_text, wrong, contains=message)


def test_another_architecture():
    coca = open_clip.get_model_config("coca_ViT-B-32")
    refuses(CLIPTowers, coca, contains="multimodal_cfg")
