"""Each file in configs/ is a config under both presets; only its data may be missing."""

from pathlib import Path

import pytest

from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import check_keys
from promptswitch_nb.train import read_yaml

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, preset):
    values = read_yaml(path)
    check_keys(values)
    config = TrainConfig(**values | dict(preset=preset))
    assert values["preset"] == "paper"
    assert config.preset == preset and config.dataset == path.stem.partition("_")[0]


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "lsmdc"])
def test_the_papers_datasets_have_the_papers_settings(name):
    config = TrainConfig(**read_yaml(next(path for path in CONFIGS if path.stem == name)))
    settings = (
        config.clip,
        config.n_frames,
        config.test_frames,
        config.k,
        config.lam,
        config.epochs,
        config.batch_size,
        config.lr_clip,
        config.lr_new,
    )
    assert settings == ("ViT-B-32-quickgelu", 6, 12, 3, 0.5, 10, 128, 3e-5, 3e-5)
