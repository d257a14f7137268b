"""Kill training, caching or encoding at random moments, go on, and compare with a run left alone.

`python scripts/kill_runs.py training --times 50` prints a line a kill and ends at the first fault.
The works are `training`, `two_processes` (training under torchrun), `caching` and `encoding`.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import small_model
from conftest import small_settings

from promptswitch_nb.datasets import write_example
from promptswitch_nb.files import write_json
from promptswitch_nb.frame_store import FrameStore
from promptswitch_nb.model import load_model
from promptswitch_nb.runs import provenance
from promptswitch_nb.runs import read_log
from promptswitch_nb.video import write_video

CLI = [sys.executable, "-m", "promptswitch_nb.cli"]
STEPS = 60


@dataclass
class Work:
    """Say how a work is made ready, begun, looked at when it was killed, and compared."""

    prepare: Callable[[Path], None]  # writes what it needs into a folder
    command: Callable[[Path, Path], list[str]]  # that folder, and where the results go
    look: Callable[[Path], Any]  # reads what is there; fails where something is half written
    result: Callable[[Path], Any]  # what two runs are compared by
    is_delicate: Callable[[Path, int], bool] | None = None  # now, at such a step or later


def settings_of(place: Path, out: Path) -> Path:
    """Write the settings of a run in which everything random takes part."""
    changes = dict(preset="official", steps=STEPS, select_on="val", eval_every=5, ema=0.9)
    changes |= dict(lr_clip=1e-3, lr_new=1e-3, resume=True, output_dir=str(out))
    path = out.with_suffix(".yaml")
    settings = yaml.safe_load((place / "settings.yaml").read_text())
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def ready_to_train(place: Path) -> None:
    """Write data and start weights."""
    (place / "settings.yaml").write_text(yaml.safe_dump(small_settings(place)))


def train_command(place: Path, out: Path) -> list[str]:
    """Train in one process."""
    return [sys.executable, "-m", "promptswitch_nb.train", "--config", str(settings_of(place, out))]


def torchrun_command(place: Path, out: Path) -> list[str]:
    """Train in two processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [sys.executable, *torchrun, *train_command(place, out)[1:]]


def awaits_checkpoint(out: Path, least: int = 0) -> bool:
    """Tell whether an evaluation, not before some step, is newer than the last checkpoint."""
    with contextlib.suppress(OSError, ValueError):  # a file that is just being written
        record = out / "last" / "run.json"
        step = json.loads(record.read_text())["step"] if record.exists() else 0
        newest = max((row["step"] for row in read_log(out) if "t2v/R@1" in row), default=0)
        return newest > step and newest >= least
    return False


def look_at_run(out: Path) -> str:
    """Read both checkpoints, if there are any; tell whether an evaluation came after the last."""
    for name in ("last", "best"):
        if (out / name).exists():
            load_model(out / name)
    if not (out / "last").exists():
        return "no checkpoint yet"
    step = torch.load(out / "last" / "state.pt", weights_only=True)["step"]
    assert step == json.loads((out / "last" / "run.json").read_text())["step"]
    return f"step {step}" + (", between evaluation and checkpoint" * awaits_checkpoint(out))


def trained(out: Path) -> tuple:
    """Read weights, optimizer and log of a finished run."""
    state = torch.load(out / "last" / "state.pt", weights_only=True)
    weights = [load_model(out / name).state_dict() for name in ("last", "best")]
    losses = [row["loss"] for row in read_log(out) if "loss" in row]
    assert len(losses) == STEPS
    return weights, state["optimizer"], state["ema"], state["step"], losses


def write_videos(place: Path) -> None:
    """Write a small model, videos of a second or two, and a file that is none."""
    small_model().save(place / "model")
    rng = np.random.default_rng(0)
    for i in range(80):
        pixels = rng.integers(0, 255, (12 * (1 + i % 3), 64, 64, 3), dtype=np.uint8)
        write_video(place / "videos" / f"{i}.mp4", pixels)
    (place / "videos" / "text.mp4").write_text("no video")


def encode_command(place: Path, out: Path) -> list[str]:
    """Encode the videos, a few to a shard."""
    options = ["--model", str(place / "model"), "--files_per_shard", "4", "--workers", "0"]
    return [*CLI, "encode", str(place / "videos"), "--out", str(out), *options]


def encoded(out: Path) -> dict:
    """Read all rows, without the names of the shards."""
    tables = {}
    for kind, key in (("windows", "id"), ("files", "path")):
        parts = sorted(out.glob(f"[!.]*.{kind}.parquet"))
        rows = [row for path in parts for row in pq.read_table(path).to_pylist()]
        tables[kind] = {str(row[key]): str(row) for row in rows}
        assert len(rows) == len(tables[kind]), f"{kind}: a row is there twice"
    return tables


def cache_command(place: Path, out: Path) -> list[str]:
    """Cache the frames of a miniature of MSR-VTT, in many parts."""
    options = ["--root", str(place / "data"), "--out", str(out), "--part_mb", "0.02"]
    return [*CLI, "cache", "msrvtt", *options, "--workers", "1"]


def stored(out: Path) -> dict:
    """Read all pictures of a store."""
    found = {}
    for path in out.glob("[!.]*.parquet"):
        for row in pq.read_table(path).to_pylist():
            assert (row["id"], row["frame"]) not in found, "a frame is there twice"
            found[row["id"], row["frame"]] = row["bytes"]
    assert len({name for name, _ in found}) == len(FrameStore(out).entries)
    return found


def if_there(read: Callable[[Path], dict]) -> Callable[[Path], str]:
    """Read results where there are some, and count them."""

    def look(out: Path) -> str:
        return f"{len(read(out))} read" if any(out.glob("[!.]*.parquet")) else "nothing yet"

    return look


WORKS = {
    "training": Work(ready_to_train, train_command, look_at_run, trained, awaits_checkpoint),
    "two_processes": Work(
        ready_to_train, torchrun_command, look_at_run, trained, awaits_checkpoint
    ),
    "encoding": Work(write_videos, encode_command, if_there(encoded), encoded),
    "caching": Work(
        lambda place: write_example("msrvtt", place / "data", n_videos=150),
        cache_command,
        if_there(stored),
        stored,
    ),
}


def same(one: Any, other: Any) -> bool:
    """Compare results, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def all_of(process: subprocess.Popen) -> list[psutil.Process]:
    """List a process and those that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    return []


def kill(process: subprocess.Popen, one_only: bool) -> str:
    """Kill all processes of a run at once, or one of those that it started and wait for the end."""
    found = all_of(process)
    if one_only and len(found) > 2:
        random.choice(found[1:]).send_signal(signal.SIGKILL)
        began = time.monotonic()
        process.wait(timeout=60)  # the others must not hang
        how = f"one process, the others ended after {time.monotonic() - began:.1f} s"
    else:
        how = "all processes"
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        process.wait()
    for each in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    return how


def start(work: Work, place: Path, out: Path) -> subprocess.Popen:
    """Begin a work or go on with it."""
    with open(place / "log.txt", "a") as log:
        environment = os.environ | dict(OMP_NUM_THREADS="1")
        command = work.command(place, out)
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def log_time(out: Path) -> int:
    """Tell when the log was written; 0: it is not there yet."""
    log = out / "log.csv"
    return log.stat().st_mtime_ns if log.exists() else 0


def wait_for_moment(process: subprocess.Popen, work: Work, out: Path, longest: float) -> None:
    """Wait for a random moment, or, at a third of the kills, for one that is delicate.

    Where the process ends before, so does the wait; else it is a `TimeoutExpired`.
    """
    seconds, before = random.uniform(0, longest), log_time(out)
    if work.is_delicate and random.random() < 1 / 3:
        least, end = int(STEPS * seconds / longest), time.monotonic() + 2 * longest
        while process.poll() is None and time.monotonic() < end:
            if log_time(out) != before and work.is_delicate(out, least):
                break
            time.sleep(0.002)
        seconds = random.uniform(0, 0.03)
    process.wait(seconds)


def ended(process: subprocess.Popen, place: Path) -> bool:
    """Tell whether a process came to its end, and stop at an error of its own."""
    if process.returncode:
        log = (place / "log.txt").read_text()[-3000:]
        raise SystemExit(f"ended with {process.returncode}:\n{log}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", help="a JSON file for what was found")
    options = parser.parse_args()
    random.seed(options.seed)
    work, place = WORKS[options.work], Path(tempfile.mkdtemp())
    work.prepare(place)
    began = time.monotonic()
    process = start(work, place, place / "whole")
    process.wait()
    ended(process, place)
    longest, whole = time.monotonic() - began, work.result(place / "whole")
    print(f"left alone: {longest:.1f} s", flush=True)
    kills, runs, late, out = 0, 0, 0, place / "out"
    while kills < options.times or out.exists():
        process, before = start(work, place, out), log_time(out)
        try:
            if kills < options.times:
                wait_for_moment(process, work, out, longest)
            else:
                process.wait()
        except subprocess.TimeoutExpired:
            how = kill(process, one_only=random.random() < 0.5)
            kills, found = kills + 1, work.look(out) if out.exists() else "nothing yet"
            late += "between" in found and log_time(out) != before
            print(f"kill {kills}: {how}; {found}", flush=True)
            continue
        ended(process, place)
        assert same(work.result(out), whole), "the run that was killed gives something else"
        runs += 1
        print(f"run {runs} came to its end, the same as the one left alone", flush=True)
        shutil.rmtree(out)
    print(f"{kills} kills, {runs} runs, {late} kills between an evaluation and its checkpoint")
    if options.record:
        found = dict(work=options.work, kills=kills, runs=runs, between=late, seed=options.seed)
        write_json(Path(options.record), found | provenance("cpu"))
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
