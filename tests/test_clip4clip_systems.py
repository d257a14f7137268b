"""CLIP4Clip's systems and CenterCLIP's are trained, saved and evaluated as their configs say."""

from pathlib import Path

import pytest
import torch

from promptswitch_nb.baselines import centerclip
from promptswitch_nb.baselines import clip4clip
from promptswitch_nb.model import load_model
from promptswitch_nb.settings import read_yaml
from promptswitch_nb.shapes import make_shapes
from promptswitch_nb.system import get_model_class
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "systems"
CONFIGS = sorted([*FOLDER.glob("clip4clip_*.yaml"), *FOLDER.glob("centerclip_*.yaml")])
NAMES = ("clip", "pretrained", "dataset", "variant", "data_root", "output_dir", "max_words")
MODULES = (centerclip, clip4clip)  # where the names come from


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Make a small set of moving shapes."""
    sizes = dict(n_train=16, n_val=4, n_test=4, n_compose=0, n_stills=2)
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data", **sizes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_its_system(path, shapes, tmp_path):
    """Of the config, only the sizes and the data are changed."""
    values = read_yaml(path)
    whole = TrainConfig(**values)
    assert whole.model == path.stem and 1e-6 <= whole.lr_clip <= 2e-6
    about = {key: value for key, value in values.items() if key not in NAMES}
    small = dict(clip="tiny", pretrained="", dataset="shapes", data_root=str(shapes))
    small |= dict(output_dir=str(tmp_path / "run"), batch_size=4, steps=2, evals_per_epoch=0)
    small |= dict(eval_every=2, log_every=1, workers=0, threads=1, device="cpu", n_frames=6)
    run = train(TrainConfig.from_dict(about | small | dict(test_frames=6)))
    losses = [row["loss"] for row in read_log(run) if "loss" in row]
    assert len(losses) == 2 and max(losses) < 100
    model = load_model(run / "best")
    assert type(model) is get_model_class(path.stem)
    assert type(model).__module__ in {module.__name__ for module in MODULES}
    video = model.video_features(torch.randn(2, 6, 3, 48, 48))
    text = model.text_features(model.tokenize(["a red square", "a ring"]))
    assert model.similarity(text, video).isfinite().all()
