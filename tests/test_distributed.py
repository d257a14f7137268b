"""The same run in two processes: the same losses, one set of files."""

import subprocess
import sys

import pytest
import yaml

from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.datasets import write_example
from promptswitch_nb.model import VideoCLIP
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train


@pytest.fixture
def settings(tmp_path) -> dict:
    """Return the settings of a short run in which each process draws no random numbers of its own."""
    write_example("folder", tmp_path / "data")
    small = TINY_CONFIG | dict(
        vision_cfg=dict(image_size=16, patch_size=8, layers=2, width=32, head_width=16),
        text_cfg=dict(context_length=12, width=32, heads=2, layers=2),
    )
    VideoCLIP(
        tiny_clip(
            ["the", "a", "red", "green", "blue", "square", "moves", "left", "right"], config=small
        )
    ).save(tmp_path / "clip")
    return dict(
        preset="smoke",
        pretrained=str(tmp_path / "clip"),
        dataset="folder",
        data_root=str(tmp_path / "data"),
        n_frames=2,
        test_frames=2,
        frames_per_chunk=2,
        k=0,
        batch_size=4,
        steps=4,
        eval_every=2,
        log_every=1,
        lr_clip=1e-4,
        lr_new=1e-4,
        threads=1,
        device="cpu",
    )


def test_two_processes_train_like_one(settings, tmp_path):
    one = train(TrainConfig.from_dict(settings | dict(output_dir=str(tmp_path / "one"))))
    config, two = tmp_path / "two.yaml", tmp_path / "two"
    config.write_text(yaml.safe_dump(settings | dict(output_dir=str(two))))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "promptswitch_nb.train",
        "--config",
        str(config),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("validation:") == 2
    rows = [[row for row in read_log(run) if "loss" in row] for run in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 4
    for ours, theirs in zip(*rows):
        for name in ("loss", "contrastive", "caption", "grad_norm", "logit_scale"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
