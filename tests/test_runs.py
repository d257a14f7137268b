"""Whose folder a run may write in, and go on in."""

import dataclasses
import json
from pathlib import Path

import pytest

from promptswitch_nb.config import TrainConfig
from promptswitch_nb.files import write_json
from promptswitch_nb.runs import claim_folder
from promptswitch_nb.runs import find_run
from promptswitch_nb.settings import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Make the config of a run that goes on in a folder that it has claimed."""
    folder = str(tmp_path / "run")
    options = dict(captioner_layers=1)
    made = TrainConfig(
        preset="smoke", data_root=str(tmp_path), output_dir=folder, model_options=options
    )
    claim_folder(made)
    return dataclasses.replace(made, resume=True)


def killed_between_two_renames(config: TrainConfig) -> Path:
    """Leave a checkpoint to which no link leads yet; return the folder of the run."""
    folder = Path(config.output_dir)
    (folder / "checkpoints" / "last-0").mkdir(parents=True)
    return folder


def test_a_folder_belongs_to_one_run(config):
    assert find_run(config) is None  # it was killed before its first checkpoint
    with pytest.raises(ConfigError, match="already holds a run: write resume: true"):
        find_run(dataclasses.replace(config, resume=False))


def test_what_a_run_computes_may_not_change(config):
    changed = dataclasses.replace(config, lr_new=1e-4)
    with pytest.raises(ConfigError, match="has lr_new: 0.001, the config now says 0.0001: set it"):
        find_run(changed)


def test_where_and_how_fast_it_runs_may_change(config):
    folder = killed_between_two_renames(config)
    moved = dataclasses.replace(config, workers=2)
    assert find_run(moved) == moved
    assert (folder / "last").exists()


def test_a_config_of_an_older_version_counts_as_its_defaults(config):
    folder = killed_between_two_renames(config)
    written = json.loads((folder / "config.json").read_text())
    older = {name: value for name, value in written.items() if name != "ema"} | dict(gone=1)
    write_json(folder / "config.json", older)
    assert find_run(config) == config
    with pytest.raises(ConfigError, match="has ema: 0.0"):
        find_run(dataclasses.replace(config, ema=0.9))


def test_the_file_of_the_first_weights_may_move_but_not_become_a_tag(config):
    folder = killed_between_two_renames(config)
    written = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", written | dict(pretrained="old/clip.pt"))
    moved = dataclasses.replace(config, pretrained="new/clip.pt")
    assert find_run(moved).pretrained == "old/clip.pt"
    with pytest.raises(ConfigError, match="has pretrained: old/clip.pt, the config now"):
        find_run(dataclasses.replace(config, pretrained="openai"))
