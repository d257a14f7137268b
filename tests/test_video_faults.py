"""Short forms of the fault runs of `scripts/`: damaged videos, many videos, long and large ones."""

import importlib
import mmap
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
pytest.importorskip("psutil")
import fuzz_videos
import long_videos
import many_videos

from promptswitch_nb import data_check
from promptswitch_nb.datasets import write_example
from promptswitch_nb.probe import DECORD_FRAMES
from promptswitch_nb.video import PyAVReader


def test_damaged_videos_are_read_or_listed():
    found = fuzz_videos.fuzz(42)
    total = found["total"]
    assert found["faults"] == [] and total["read"] + total["listed"] == total["files"] == 42
    assert total["read"] >= 10 and total["listed"] >= 5 and total["frames compared"] > 100
    assert set(found["kinds"]) >= {"h264.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "h264.ts"}
    assert all(found["reasons"])


def test_each_container_is_damaged_in_each_way(tmp_path):
    kinds = len(fuzz_videos.write_clips(tmp_path))
    files = fuzz_videos.write_damaged(tmp_path, kinds * len(fuzz_videos.DAMAGES), 0)
    assert len({(kind, how) for _, kind, how in files}) == len(files)


def test_frames_under_a_wrong_number_are_found(tmp_path, monkeypatch):
    fuzz_videos.write_clips(tmp_path)
    clip = tmp_path / "h264.mp4"
    assert fuzz_videos.compare_frames(clip, clip) == dict(compared=12, wrong=[])
    read = fuzz_videos.read_frames

    def one_late(reader, draw):
        return read(reader, lambda total: np.minimum(draw(total) + 1, total - 1))

    monkeypatch.setattr(fuzz_videos, "read_frames", one_late)
    assert len(fuzz_videos.compare_frames(clip, clip)["wrong"]) == 12


def test_a_data_tree_is_checked_though_files_crash_or_hang_their_decoder(tmp_path, monkeypatch):
    Path(tmp_path, "crashing.py").write_text(
        "import os, time\n"
        "def decode_error(path, *, to_end):\n"
        "    if 'square_0' in path:\n        os._exit(7)\n"
        "    if 'square_1.' in path:\n        time.sleep(100)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("crashing").decode_error
    monkeypatch.setattr(data_check, "decode_error", work)
    root = write_example("folder", tmp_path / "data")
    report = data_check.check_data("folder", root, workers=2, seconds=10)
    assert {Path(path).stem: reason for _, path, reason in report.bad} == {
        "square_0": "its decoder crashed (exit status 7)",
        "square_1": "it is not read after 10 seconds",
    }
    assert sum(split.undecodable for split in report.splits) == 2


def open_many(count, **options):
    """In a process of its own: what a large one holds or gives back would hide what grows."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(many_videos.open_many, count, every=10, **options).result()


KEPT = []


def keep_memory(path):
    many_videos.read(path)
    KEPT.append(mmap.mmap(-1, 320_000))
    KEPT[-1].write(bytes(320_000))


def keep_file(path):
    many_videos.read(path)
    KEPT.append(path.open("rb"))


def test_memory_does_not_grow_with_the_videos_that_were_opened():
    found = open_many(130)
    assert 10 < found["listed"] < 110
    assert found["kb_a_video"] < 20 and "left open" not in many_videos.grows(found)


@pytest.mark.parametrize(
    "read, said", [(keep_memory, "memory grows"), (keep_file, "left open")], ids=["memory", "files"]
)
def test_a_leak_is_found(read, said):
    assert said in many_videos.grows(open_many(90, read=read))


def test_frames_of_a_long_video_show_their_numbers(tmp_path):
    count = DECORD_FRAMES + 1
    row, frames = long_videos.measure(long_videos.write_numbered(tmp_path / "long.mp4", count))
    wanted = long_videos.sample_indices(count, long_videos.WANTED).tolist()
    assert (row["frames"], row["chosen"]) == (count, "pyav")
    assert long_videos.shown_numbers(frames) == wanted
    reader = PyAVReader(tmp_path / "long.mp4", long_videos.probe_video(tmp_path / "long.mp4"))
    assert long_videos.shown_numbers(reader.frames([2999, 251])) == [2999, 251]
    assert reader.decoded < 3 * 250


def test_a_video_in_4k_takes_the_memory_of_its_frames(tmp_path):
    found = long_videos.peaks(tmp_path, ("in training",), count=13, preset="ultrafast")
    assert found["in training"] < long_videos.FRAMES_MB + long_videos.DECODER_MB
