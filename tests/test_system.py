"""What a system refuses to be built of, and to encode."""

import numpy as np
import pytest
import torch

from promptswitch_nb.clip import CLIPTowers
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.system import VideoCLIP
from promptswitch_nb.system import get_model_class
from promptswitch_nb.system import make_fusion
from promptswitch_nb.system import make_system


@pytest.fixture(scope="module")
def model() -> VideoCLIP:
    """Make the plainest system."""
    torch.manual_seed(0)
    return VideoCLIP(tiny_clip(["a", "red", "square"]))


def refused(words: str, act, *args, **options) -> None:
    """See that a call is refused with these words."""
    with pytest.raises((TypeError, ValueError)) as caught:
        act(*args, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(image_size=32), "preprocess has image_size = 32, the model 48: give the model's"),
        (dict(max_words=99), "max_words is 99: this CLIP reads 3 to 24"),
    ],
)
def test_a_record_that_does_not_fit_the_towers(changes, words, model):
    refused(words, VideoCLIP, model.clip, preprocess=model.preprocess.changed(**changes))


def test_colours_that_the_towers_were_not_trained_on(model):
    grey = CLIPTowers(model.clip.config, mean=(0.5,) * 3, std=(0.5,) * 3)
    refused("the model (0.5, 0.5, 0.5): give", VideoCLIP, grey, preprocess=model.preprocess)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "there are no texts to encode"),
        (None, "None (of type NoneType) is not a text"),
        ([3], "3 (of type int) is not a text"),
        (torch.zeros(0, 24, dtype=torch.long), "there are no texts to encode"),
        (torch.zeros(24, dtype=torch.long), "token ids are a tensor (B,W)"),
    ],
)
def test_no_text(texts, words, model):
    refused(words, model.encode_text, texts)


def test_no_video(model):
    frames = torch.zeros(2, 6, 3, 48, 48)
    refused("nothing to encode: 0 videos of 6 fr", model.encode_video, frames[:0])
    refused("2 videos of 0 frames", model.encode_frames, frames[:, :0])


def test_texts_of_numpy_are_texts(model):
    texts = ["a red square", "a square"]
    assert torch.equal(model.encode_text(np.array(texts)), model.encode_text(texts))


def test_names_and_options_that_are_not_known():
    refused("VideoCLIP has no option 'k'", VideoCLIP.config_of, k=3)
    refused("unknown preset 'papper'", VideoCLIP.config_of, "papper")
    refused("has no option 'kk'; did you mean 'k'", make_fusion, "top_k", 4, kk=3)
    refused("unknown fusion 'topk'; did you mean top_k?", make_fusion, "topk", 4)
    refused("unknown model 'clip_men'; did", get_model_class, "clip_men")
    refused("a subclass of VideoCLIP", get_model_class, "collections:OrderedDict")


def test_half_a_pair(model):
    words = "{encoder: NAME, fusion: NAME} with both"
    refused(words, make_system, dict(encoder="clip"), model.clip)
    words = "for an encoder and a fusion write {encoder: {…}, fusion: {…}}"
    pair = dict(encoder="clip", fusion="mean")
    refused(words, make_system, pair, model.clip, options=dict(k=2))
