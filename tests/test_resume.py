"""A run that is killed goes on from its last checkpoint and ends as if nothing had happened."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from promptswitch_nb.command import sentence
from promptswitch_nb.model import load_model
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

STEPS = 60
LIMIT = 900  # seconds after which a process is taken to hang; it needs a few


@pytest.fixture
def settings(small_run) -> dict:
    """Return the settings of a short run in which everything random takes part.

    Frames, crops and k of F are drawn, and the pairs are in another order in each epoch.
    """
    changes = dict(preset="official", steps=STEPS, select_on="val", eval_every=5, ema=0.9)
    return small_run | changes | dict(lr_clip=1e-3, lr_new=1e-3)


@pytest.fixture
def start():
    """Return a function that starts a run in a process of its own, as a user would.

    At the end of the test, none of these processes is left. A process that hangs is killed after
    `LIMIT` seconds, so that whoever waits for it learns of its end.
    """
    processes, clocks = [], []

    def start(config: Path, *options: str) -> subprocess.Popen:
        log = config.with_suffix(f".{len(processes)}.log")
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "promptswitch_nb.train", "--config", str(config), *options],
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        process.log, clock = log, threading.Timer(LIMIT, stop, [process])
        processes.append(process)
        clocks.append(clock)
        clock.start()
        return process

    yield start
    for process, clock in zip(processes, clocks):
        clock.cancel()
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Kill a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def steps_saved(folder: Path) -> int:
    """Read of which step the last checkpoint of a run is; 0: there is none yet."""
    with contextlib.suppress(FileNotFoundError):  # also where it is just being replaced
        return json.loads((folder / "last" / "run.json").read_text())["step"]
    return 0


def kill_at(step: int, process: subprocess.Popen, folder: Path) -> None:
    """Wait for the checkpoint of a step, however long it takes, and kill the run with SIGKILL."""
    while steps_saved(folder) < step:
        assert process.poll() is None, process.log.read_text()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint."""
    return load_model(folder).state_dict()


def test_a_killed_run_is_the_same_run(settings, start, tmp_path):
    whole = train(TrainConfig.from_dict(settings | dict(output_dir=str(tmp_path / "whole"))))
    folder = tmp_path / "killed"
    config = tmp_path / "killed.yaml"
    config.write_text(yaml.safe_dump(settings | dict(output_dir=str(folder), resume=True)))
    kill_at(7, start(config, "--workers", "1"), folder)
    assert load_model(folder / "last") and load_model(folder / "best")
    process = start(config)
    assert process.wait() == 0, process.log.read_text()
    for name in ("last", "best"):
        ours, theirs = weights(folder / name), weights(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    ours, theirs = (
        torch.load(run / "last" / "state.pt", weights_only=True) for run in (folder, whole)
    )
    for key in ("step", "epoch", "batches_done", "best", "history"):
        assert ours[key] == theirs[key], key
    assert all(torch.equal(ours["ema"][key], theirs["ema"][key]) for key in theirs["ema"])
    losses = [[row["loss"] for row in read_log(run) if "loss" in row] for run in (folder, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_a_full_disk_leaves_the_last_checkpoint(name, settings, small_disk, tmp_path):
    """The second checkpoint does not fit beside the first: half of one of its files is too much."""
    settings |= dict(steps=4, eval_every=4, resume=True)
    whole = train(TrainConfig.from_dict(settings | dict(output_dir=str(tmp_path / "whole"))))
    folder = small_disk.place / "run"
    config = TrainConfig.from_dict(settings | dict(output_dir=str(folder)))
    parts = [whole / "last" / part for part in ("model.safetensors", "state.pt")]
    sizes = [part.stat().st_size for part in parts]
    room = sum(sizes) + (sizes[0] / 2 if name == parts[0].name else sizes[0] + sizes[1] / 2)
    small_disk.resize(f"{round(room / 1024) + 60}k")
    with pytest.raises((OSError, RuntimeError)) as caught:
        train(config)
    assert sentence(caught.value).startswith("the disk is full (")
    assert steps_saved(folder) == 1 and load_model(folder / "last")
    assert [path.parent.name for path in folder.rglob("state.pt")] == [
        (folder / "last").resolve().name
    ]
    small_disk.resize("9m")
    train(config)
    ours, theirs = (
        torch.load(run / "last" / "state.pt", weights_only=True) for run in (folder, whole)
    )
    assert ours["step"] == theirs["step"] == 4
    for name in ("last", "best"):
        ours, theirs = weights(folder / name), weights(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
