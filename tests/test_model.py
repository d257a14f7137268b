"""What Prompt Switch and its loading refuse."""

import pytest
import torch

from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.model import PromptSwitchConfig
from promptswitch_nb.model import VideoCLIP
from promptswitch_nb.model import get_model_class


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(residual="both"), "residual must be one of"),
        (dict(k=-1), "k must not be negative, got -1"),
        (dict(frames_per_chunk=0), "frames_per_chunk must be at least 1, got 0"),
        (dict(captioner_layers=-1), "captioner_layers must not be negative"),
        (dict(lam=-0.5), "lam must not be negative"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        PromptSwitchConfig(**options)


def test_more_frames_to_keep_than_there_are():
    model = PromptSwitch(tiny_clip(["a"]), PromptSwitch.config_of(k=7))
    with pytest.raises(ValueError, match="cannot keep k = 7 of 6 frames"):
        model.train().video_features(torch.zeros(1, 6, 3, 48, 48))


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="unknown model 'prompt_swich'"):
        get_model_class("prompt_swich")


def test_the_folder_of_another_system(tmp_path):
    VideoCLIP(tiny_clip(["a"])).save(tmp_path / "plain")
    with pytest.raises(ValueError, match="holds a VideoCLIP, not a PromptSwitch"):
        PromptSwitch.load(tmp_path / "plain")


def test_what_is_no_checkpoint_of_the_authors_code(tmp_path):
    path = tmp_path / "other.pth"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PromptSwitch.load_official(path)
    torch.save(dict(state_dict={"clip.logit_scale": torch.zeros(())}), path)
    with pytest.raises(ValueError, match="is it a checkpoint of Prompt Switch?"):
        PromptSwitch.load_official(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="not a checkpoint of the released code"):
        PromptSwitch.load_official(path)
