"""Shards run under Ray, in parts and after a kill, and hold each file once."""

import dataclasses
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import small_model

from promptswitch_nb.cli import main as command
from promptswitch_nb.command import sentence
from promptswitch_nb.encode import find_videos
from promptswitch_nb.shards import EncodeConfig
from promptswitch_nb.shards import encode_folder
from promptswitch_nb.shards import plan_shards
from promptswitch_nb.shards import run_ray
from promptswitch_nb.video import write_video


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Save a small model, and write twelve short videos."""
    place = tmp_path_factory.mktemp("shards")
    small_model().save(place / "model")
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
        write_video(place / "videos" / f"{i}.mp4", pixels)
    return place


def files_in(out: Path) -> Counter:
    """Count how often each path stands in the shards of a folder."""
    tables = [pq.read_table(path) for path in out.glob("[!.]*.files.parquet")]
    return Counter(path for table in tables for path in table["path"].to_pylist())


def settings_of(place: Path, out: str, **changes) -> EncodeConfig:
    """Make the settings of a run, which decodes in its own process if nothing else is said."""
    changes = dict(workers=0) | changes
    return EncodeConfig(
        folder=str(place / "videos"),
        out=str(place / out),
        model=str(place / "model"),
        files_per_shard=2,
        **changes,
    )


def test_parts_of_a_job_array_make_a_whole(place):
    """Three parts, each by a command of its own, hold each file once."""
    for i in (1, 2, 3):
        options = ["--out", str(place / "parts"), "--model", str(place / "model")]
        command(["encode", str(place / "videos"), *options, "--shard", f"{i}/3", "--workers", "0"])
    assert files_in(place / "parts") == Counter(find_videos(place / "videos"))


def test_an_unfinished_shard_is_done_again(place):
    """A shard whose second table is missing, or is a part of one, does not count."""
    config = settings_of(place, "broken")
    encode_folder(config)
    first, second, *_ = sorted((place / "broken").glob("*.files.parquet"))
    first.unlink()
    second.rename(second.with_name(f".{second.name}"))
    shards, n_done = plan_shards(config)
    assert sum(len(shard.paths) for shard in shards) == 4
    assert n_done == 8
    encode_folder(config)
    assert files_in(place / "broken") == Counter(find_videos(place / "videos"))


def test_a_full_disk_leaves_whole_shards(place, small_disk):
    """What was written before is whole, no part of a file is left, and the run goes on."""
    encode_folder(settings_of(place, "roomy"))
    config = dataclasses.replace(settings_of(place, ""), out=str(small_disk.place / "out"))
    small_disk.resize("60k")
    with pytest.raises(OSError, match="No space left on device") as caught:
        encode_folder(config)
    assert sentence(caught.value).startswith("the disk is full (")
    out = Path(config.out)
    assert not list(out.glob(".*.parquet"))
    assert 0 < files_in(out).total() < 12
    small_disk.resize("9m")
    encode_folder(config)

    def rows(folder: Path) -> dict:
        tables = [pq.read_table(path) for path in folder.glob("*.windows.parquet")]
        return {row["id"]: row for table in tables for row in table.to_pylist()}

    assert files_in(out) == files_in(place / "roomy")
    assert rows(out) == rows(place / "roomy")


def start_ray(ray) -> None:
    """Start Ray; on a busy machine its node is sometimes not up in the time that Ray allows."""
    options = dict(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for attempt in range(3):
        try:
            ray.init(**options)
            return
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise


def test_ray_survives_the_death_of_a_worker(place):
    """A worker is killed in the middle of the work; in the end each file is there once."""
    ray = pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    config = settings_of(place, "ray")
    shards, _ = plan_shards(config)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    start_ray(ray)
    killed = []

    def kill_one() -> None:
        """Kill the first process that is at work on a shard."""
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            for process in psutil.Process().children(recursive=True):
                try:
                    if "_encode_row" in process.name() or "_encode_row" in process.cmdline()[0]:
                        process.send_signal(signal.SIGKILL)
                        killed.append(process.pid)
                        return
                except (psutil.Error, IndexError):
                    continue
            time.sleep(0.005)

    hunter = threading.Thread(target=kill_one)
    hunter.start()
    try:
        list(run_ray(shards))
    finally:
        hunter.join()
        ray.shutdown()
    assert killed
    assert files_in(place / "ray") == Counter(find_videos(place / "videos"))
