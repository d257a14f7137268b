"""A folder that does not hold a whole model is named, with what is wrong with it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.saving import load_model
from promptswitch_nb.system import VideoCLIP
from promptswitch_nb.system import make_system


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Save a small model."""
    model = make_system(dict(encoder="clip", fusion="xpool"), tiny_clip(["a", "ring"]))
    model.save(tmp_path / "best")
    return tmp_path / "best"


def refused(words: str, folder: Path) -> None:
    """See that a folder is refused with these words."""
    with pytest.raises((OSError, ValueError)) as caught:
        load_model(folder)
    assert words in str(caught.value)


def test_weights_that_break_off(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1000])
    refused("model.safetensors is missing or damaged", folder)


def test_weights_of_something_else(folder):
    save_file({"something": torch.zeros(1)}, folder / "model.safetensors")
    refused("does not hold this model", folder)


def test_a_description_that_is_damaged_or_of_something_else(folder):
    save_file({"something": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"format": ')
    refused("config.json is damaged", folder)
    (folder / "config.json").write_text("{}")
    refused("was not written by save()", folder)


def test_a_folder_that_is_not_there_and_a_file_in_its_place(folder):
    refused("holds no config.json", folder.parent / "nowhere")
    (folder.parent / "file").write_text("")
    with pytest.raises((OSError, ValueError), match="cannot save the model in"):
        load_model(folder).save(folder.parent / "file")


@pytest.mark.parametrize("part", ["model", "fusion"])
def test_a_path_to_another_kind_of_class_is_not_followed(part, folder):
    description = json.loads((folder / "config.json").read_text())
    description |= {part: dict(name="x", path="torch.nn:Linear")}
    (folder / "config.json").write_text(json.dumps(description))
    kind = dict(model="VideoCLIP", fusion="Fusion")[part]
    refused(f"torch.nn:Linear is no subclass of {kind}", folder)


def test_a_model_that_can_be_loaded_is(folder):
    assert type(load_model(folder)) is VideoCLIP
