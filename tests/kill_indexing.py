"""Kill an index in the making at random moments, and look at what is left.

`python tests/kill_indexing.py --times 50` prints a line a kill and fails at the first fault.
The processes are forked from one that never opens the store, which LanceDB asks for.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from promptswitch_nb.video import write_video
from promptswitch_nb.windows import Windowing

sys.path.insert(0, str(Path(__file__).parent))
from conftest import small_model

FORK = multiprocessing.get_context("fork")
SECONDS = 8.0  # after the first window, within which the kill comes


def make_videos(folder: Path, count: int = 10) -> None:
    """Write videos of 2 to 8 seconds, two of them with the same content."""
    rng = np.random.default_rng(0)
    for i in range(count):
        seed = rng.integers(0, 255, (1, 32, 32, 3))
        ramp = np.linspace(0.4, 1, 12 * (2 + i % 7))[:, None, None, None]
        write_video(folder / f"{i}.mp4", (seed * ramp).astype(np.uint8))
    (folder / "copy.mp4").write_bytes((folder / "3.mp4").read_bytes())
    (folder / "text.mp4").write_text("no video")


def index_slowly(place: Path, pause: float) -> None:
    """Index the videos, committing each window, with a pause between two."""
    from promptswitch_nb import indexing
    from promptswitch_nb.catalogue import VideoIndex

    torch.set_num_threads(1)
    add = indexing.Writer.add

    def add_now(self, step) -> None:
        """Commit at once."""
        (place / "begun").touch()
        self.limits = (0.0, 1)
        add(self, step)
        time.sleep(pause)

    indexing.Writer.add = add_now
    index = VideoIndex.open(place / "videos.lance", small_model())
    options = dict(windowing=Windowing(seconds=1.0), batch_size=1, quiet=True)
    index.add(place / "videos", **options)


def look(place: Path, out: Path) -> None:
    """Write down what the store holds."""
    from promptswitch_nb.vector_store import open_store

    store = open_store(str(place / "videos.lance"), create=True)
    windows = store.read("windows", ["id", "file", "vector"]).to_pylist()
    files = store.read("files", ["path", "file", "windows", "reason"]).to_pylist()
    files = [row | dict(path=os.fsdecode(row["path"])) for row in files]
    out.write_text(json.dumps(dict(windows=windows, files=files)))


def in_child(function: Callable, *args: object, kill_after: float | None = None) -> bool:
    """Run a function in a process of its own; return whether it was killed.

    The seconds until the kill count from when the first window is there.
    """
    begun = args[0] / "begun"
    begun.unlink(missing_ok=True)
    child = FORK.Process(target=function, args=args)
    child.start()
    while kill_after is not None and child.is_alive() and not begun.exists():
        time.sleep(0.01)
    child.join(kill_after)
    was_alive = child.is_alive()
    if was_alive:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    elif child.exitcode:
        raise SystemExit(f"{function.__name__} ended with {child.exitcode}")
    return was_alive


def checked(state: dict, before: dict) -> tuple[int, int]:
    """Compare what is there with what was there before the last run."""
    ids = [row["id"] for row in state["windows"]]
    assert len(ids) == len(set(ids)), "a window is there twice"
    vectors = {row["id"]: row["vector"] for row in state["windows"]}
    for row in before["windows"]:
        assert vectors.get(row["id"]) == row["vector"], f"{row['id']} is lost or changed"
    done = {row["path"]: row for row in state["files"]}
    assert {row["path"] for row in before["files"]} <= set(done), "a file is lost"
    for row in done.values():
        held = sum(name.startswith(row["file"] + ":") for name in ids) if row["file"] else 0
        assert held == row["windows"], f"{row['path']}: {held} of {row['windows']} windows"
    return len(ids), len(done)


def main(times: int, seed: int = 0) -> list[tuple[int, int]]:
    """Kill so many runs; return how many windows and files each left."""
    chance, found = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_videos(place / "videos")
        empty = before = dict(windows=[], files=[])
        whole = None
        while len(found) < times:
            pause = chance.uniform(0, 0.1)
            killed = in_child(index_slowly, place, pause, kill_after=chance.uniform(0, SECONDS))
            in_child(look, place, place / "state.json")
            state = json.loads((place / "state.json").read_text())
            counts = checked(state, before)
            before = state
            if killed:
                found.append(counts)
                print(f"kill {len(found)}: {counts[0]} windows, {counts[1]} files", flush=True)
                continue
            ids = {row["id"] for row in state["windows"]}
            assert whole in (None, ids), "another run gave other windows"
            assert len(state["files"]) == 12
            whole, before = ids, empty
            os.system(f"rm -r {place / 'videos.lance'}")
        in_child(index_slowly, place, 0.0)
        in_child(look, place, place / "state.json")
        state = json.loads((place / "state.json").read_text())
        checked(state, before)
        assert len(state["files"]) == 12, "the run did not go on to the end"
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.times, arguments.seed)
