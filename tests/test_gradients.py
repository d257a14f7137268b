"""The gradient of each system's loss is the slope of the loss, with padded videos and without."""

import pytest
import torch
from torch import Tensor
from torch import nn

from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.system import VideoCLIP
from promptswitch_nb.system import make_system

NAMES = [
    *("clip4clip_mean", "clip4clip_seq_transf", "clip4clip_seq_lstm", "clip4clip_tight"),
    *("centerclip_kmedoids", "centerclip_spectral", "token_shift", "ts2net", "video_proxy"),
    *("clipvip", "xpool", "drl", "xclip", "emcl", "clip2video"),
]
CAPTIONS = ["a disc moves", "a disc", "left and right"]
FRAMES, SMALL = 4, 1e-5


def as_trained(name: str) -> VideoCLIP:
    """Build a system in double precision, with random numbers in all parts that are new."""
    torch.manual_seed(0)
    model = make_system(name, tiny_clip(["a", "disc", "moves", "left", "and", "right"]))
    if name == "xclip":  # whose matrices are made for a number of frames
        sizes = dict(n_frames=FRAMES, test_frames=FRAMES)
        model = type(model)(model.clip, preprocess=model.preprocess.changed(**sizes))
    for group, parameters in model.parameter_groups().items():
        for p in parameters if group != "clip" else []:
            nn.init.normal_(p, std=0.1)
    if name == "emcl":
        nn.init.normal_(model.fusion.bases)
        model.fusion.bases.copy_(nn.functional.normalize(model.fusion.bases, dim=1))
    return model.eval().double()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope(name, padded):
    model, size = as_trained(name), 48
    ids = model.tokenize(CAPTIONS)
    frames = torch.randn(len(ids), FRAMES, 3, size, size).double().requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]).bool() if padded else None

    def loss() -> Tensor:
        text, video = model.text_features(ids), model.video_features(frames, mask)
        return model.losses(text, video, ids)["loss"]

    leaves = [frames, *(p for p in model.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(loss(), leaves, allow_unused=True)
    for part in (slice(0, 1), slice(1, None)):  # the pixels; all parameters
        drawn = [torch.randn_like(leaf) for leaf in leaves[part]]
        length = sum(direction.square().sum() for direction in drawn).sqrt()
        directions = [direction / length for direction in drawn]
        along = sum((g * d).sum() for g, d in zip(gradients[part], directions) if g is not None)
        values = []
        with torch.no_grad():
            for step in (SMALL, -SMALL):
                for leaf, direction in zip(leaves[part], directions):
                    leaf.add_(step * direction)
                values.append(loss())
                for leaf, direction in zip(leaves[part], directions):
                    leaf.sub_(step * direction)
        slope = (values[0] - values[1]) / (2 * SMALL)
        assert along.abs() > 1e-9
        torch.testing.assert_close(along, slope, rtol=1e-4, atol=1e-10)
