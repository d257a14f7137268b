"""Each file in configs/ is a config under both presets; only its data may be missing."""

from pathlib import Path

import pytest

from promptswitch_nb.settings import read_yaml
from promptswitch_nb.train import TrainConfig

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, preset):
    values = read_yaml(path)
    config = TrainConfig(**values | dict(preset=preset))
    assert values["preset"] == "paper"
    assert config.preset == preset and config.dataset == path.stem.partition("_")[0]


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "lsmdc"])
def test_the_papers_datasets_have_the_papers_settings(name):
    c = TrainConfig(**read_yaml(next(path for path in CONFIGS if path.stem == name)))
    assert (c.clip, c.n_frames, c.test_frames, c.k) == ("ViT-B-32-quickgelu", 6, 12, 3)
    assert (c.lam, c.epochs, c.batch_size) == (0.5, 10, 128)
    assert (c.lr_clip, c.lr_new) == (3e-5, 3e-5)
