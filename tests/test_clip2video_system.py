"""CLIP2Video is trained, saved and evaluated as its config says, in all its forms."""

from pathlib import Path

import pytest
import torch

from promptswitch_nb.baselines.clip2video import CLIP2Video
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.model import load_model
from promptswitch_nb.registry import path_of
from promptswitch_nb.settings import read_yaml
from promptswitch_nb.shapes import make_shapes
from promptswitch_nb.system import make_fusion
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "systems" / "clip2video.yaml"
SHORT = dict(batch_size=4, steps=2, evals_per_epoch=0, eval_every=2, log_every=1, workers=0)
SHORT |= dict(clip="tiny", pretrained="", dataset="shapes", threads=1, device="cpu")
OF_SCALE = ("clip", "pretrained", "dataset", "variant", "max_words")  # of a config, not used here
FORMS = [{}, dict(official=True, heads=2), dict(difference="projection", aligned_differences=False)]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Make a small set of moving shapes."""
    sizes = dict(n_train=16, n_val=4, n_test=4, n_compose=0, n_stills=2)
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data", **sizes)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_the_config_trains_and_evaluates(options, shapes, tmp_path):
    """Of the config, only the sizes, the data and the options are changed."""
    values = read_yaml(CONFIG)
    whole = TrainConfig(**values)
    assert whole.model == "clip2video" and whole.lr_clip == 1e-6
    about = {key: value for key, value in values.items() if key not in OF_SCALE} | SHORT
    about |= dict(model=path_of(CLIP2Video), data_root=str(shapes))
    about |= dict(output_dir=str(tmp_path / "run"), n_frames=6, test_frames=6)
    about |= dict(model_options=values["model_options"] | options)
    run = train(TrainConfig.from_dict(about))
    losses = [row["loss"] for row in read_log(run) if "loss" in row]
    assert len(losses) == 2 and max(losses) < 100
    model = load_model(run / "best")
    assert type(model) is CLIP2Video and model.offline
    assert model.config.official == options.get("official", False)
    config = EvaluateConfig(
        str(run / "best"), "shapes", str(shapes), results_dir=str(tmp_path / "results")
    )
    metrics = evaluate(config)[0]["metrics"]
    assert metrics["videos"] == 4 and 0 <= metrics["t2v/R@1"] <= 100


@torch.no_grad()
def test_features_are_those_of_the_pair():
    """The batch changes nothing, and shapes do not depend on it."""
    torch.manual_seed(0)
    model = CLIP2Video(tiny_clip(["a", "red", "ring", "moves", "left"])).eval()
    ids = model.tokenize(["a ring", "a red ring moves left", "red"])
    text, alone = model.text_features(ids), model.text_features(ids[:1])
    mask = torch.tensor([[True] * 8, [True] * 3 + [False] * 5, [False, True] * 4])
    frames = torch.randn(3, 8, 3, 48, 48)
    video = model.video_features(frames, mask)
    for i in range(3):
        one = model.video_features(frames[i : i + 1], mask[i : i + 1])
        assert all(torch.allclose(one[k][0], video[k][i], atol=1e-5) for k in video)
    for name in text:
        assert torch.allclose(alone[name], text[name][:1], atol=1e-5)
    assert torch.allclose(text["pooled"].norm(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(video["pooled"].norm(dim=-1), torch.ones(3), atol=1e-5)
    sims = model.similarity(text, video)
    assert torch.allclose(sims, text["pooled"] @ video["pooled"].T, atol=1e-6)


def test_what_it_cannot_be():
    clip = tiny_clip(["a"])
    with pytest.raises(ValueError, match="CLIP2Video has no AttentionFusion"):
        CLIP2Video(clip, fusion=make_fusion("attention", 64))
    with pytest.raises(ValueError, match="videos of 78 frames; there are 77 places"):
        CLIP2Video(clip).head.labels(78)
