"""A video is seen in one way: by `load_frames`, in training and in evaluation."""

import numpy as np
import pytest
import torch
from conftest import small_model

from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.frames import PRESET_VIEWS
from promptswitch_nb.gallery import encode_split
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.model import load_model
from promptswitch_nb.samples import GalleryDataset
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import train
from promptswitch_nb.video import write_video


@pytest.mark.parametrize("preset", PRESET_VIEWS)
def test_what_load_frames_gives_is_what_evaluate_encodes(preset, small_run, tmp_path):
    settings = small_run | dict(preset=preset, k=0, steps=2, test_frames=4, select_on="last")
    folder = train(TrainConfig.from_dict(settings))
    model = load_model(folder / "last").eval()
    assert model.preprocess.transform == PRESET_VIEWS[preset]["transform"]
    assert (model.preprocess.n_frames, model.preprocess.test_frames) == (2, 4)
    data = (str(folder / "last"), "folder", settings["data_root"])
    _, encoded = evaluate(EvaluateConfig(*data, results_dir=str(tmp_path / "results")))
    for pair, vector in zip(encoded.videos, encoded.video["pooled"], strict=True):
        ours = model.encode_video(model.load_frames(pair.path)[None])[0]
        assert torch.allclose(ours, vector, atol=1e-6)


def test_a_model_of_another_view_loses_what_stands_at_the_sides(tmp_path):
    """The reason for all of this: two videos that differ at their left and right ends alone."""
    model = small_model().eval()
    vectors = {}
    for name, colour in dict(bright=255, dark=0).items():
        frames = np.full((8, 32, 96, 3), 90, np.uint8)
        frames[:, :, :20] = frames[:, :, -20:] = colour
        path = write_video(tmp_path / f"{name}.mp4", frames)
        for transform in ("whole_frame", "crop"):
            model.preprocess = model.preprocess.changed(transform=transform)
            vectors[name, transform] = model.encode_video(model.load_frames(path)[None])
    apart = {
        transform: (vectors["bright", transform] - vectors["dark", transform]).norm().item()
        for transform in ("whole_frame", "crop")
    }
    assert apart["whole_frame"] > 0.1 > 10 * apart["crop"]


def test_frames_dealt_for_another_cube_are_an_error(small_run):
    model = small_model(frames_per_chunk=4)
    pairs = load_pairs("folder", small_run["data_root"], "test")
    gallery = GalleryDataset(pairs, n_frames=12, frames_per_chunk=6, image_size=16)
    with pytest.raises(ValueError, match="frames_per_chunk = 6, the model sees with 4: read them"):
        encode_split(model, gallery)
    with pytest.raises(ValueError, match="preprocess has frames_per_chunk = 6, the model 4"):
        PromptSwitch(model.clip, model.config, preprocess=gallery.preprocess)
    with pytest.raises(ConfigError, match="n_frames is 6: it must be a multiple of frames_per_chu"):
        train(TrainConfig.from_dict(small_run | dict(frames_per_chunk=4, n_frames=6, k=0)))


def test_a_checkpoint_is_evaluated_as_it_sees_unless_told_otherwise(small_run, tmp_path):
    folder = train(TrainConfig.from_dict(small_run | dict(steps=1, select_on="last")))
    data = (str(folder / "last"), "folder", small_run["data_root"])
    for preset, transform in {"": "whole_frame", "official": "crop"}.items():
        config = EvaluateConfig(*data, preset=preset, results_dir=str(tmp_path / "r"), run="x")
        results, encoded = evaluate(config)
        assert results["preprocess"]["transform"] == transform
        assert encoded.model.preprocess.transform == transform
