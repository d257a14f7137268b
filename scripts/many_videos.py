"""Open thousands of videos in one process, and see whether its memory grows.

`python scripts/many_videos.py --record results/faults/memory.json` opens 5,000: fourteen clips of
several containers and twice as many damaged files, in turn. It ends with an error where memory or
open files grow.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from itertools import islice
from pathlib import Path

import av
import numpy as np
import psutil
from fuzz_videos import PREPROCESS
from fuzz_videos import write_clips
from fuzz_videos import write_damaged

from promptswitch_nb.command import Meter
from promptswitch_nb.files import write_json
from promptswitch_nb.runs import provenance
from promptswitch_nb.video import VideoError
from promptswitch_nb.video import load_frames

MOST = 2.0  # kB a video: 10 MB over 5,000


def read(path: Path) -> None:
    """Read a video as the model sees it."""
    load_frames(path, PREPROCESS)


def open_many(
    count: int,  # videos
    every: int,  # videos between two looks at the memory
    read: Callable[[Path], None] = read,  # raises VideoError of a file that cannot be read
) -> dict:
    """Open videos one after the other; the memory, and how it grows after the first fifth."""
    process, listed, seen, began = psutil.Process(), 0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = write_clips(folder)
        files = [*whole, *(path for path, _ in write_damaged(folder, 2 * len(whole), 0).values())]
        with Meter("opening", count, "video") as meter:
            for number, path in enumerate(islice(cycle(files), count), 1):
                try:
                    read(path)
                except VideoError:
                    listed += 1
                meter.add()
                if number % every == 0:
                    gc.collect()
                    memory, opened = process.memory_info().rss / 1e6, process.num_fds()
                    seen.append(dict(videos=number, memory_mb=round(memory, 2), open_files=opened))
    steady = seen[len(seen) // 5 :]
    videos, memory = ([row[name] for row in steady] for name in ("videos", "memory_mb"))
    (slope, _), covariance = np.polyfit(videos, memory, 1, cov=True)
    return dict(
        videos=count,
        listed=listed,
        seconds=round(time.monotonic() - began),
        kb_a_video=round(1000 * slope, 3),
        standard_error=round(1000 * float(covariance[0, 0]) ** 0.5, 3),
        growth_mb=round(memory[-1] - memory[0], 2),
        seen=seen,
    )


def grows(found: dict) -> str:
    """Say all that grows, if something does."""
    said = []
    if found["kb_a_video"] - 2 * found["standard_error"] > MOST:
        said.append(f"memory grows by {found['kb_a_video']} kB a video")
    first, last = (found["seen"][at]["open_files"] for at in (0, -1))
    if last > first:
        said.append(f"{last - first} files were left open")
    return "; ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=5000)
    parser.add_argument("--every", type=int, default=250, help="videos between two looks")
    parser.add_argument("--record", type=Path, help="a JSON file for what was found")
    options = parser.parse_args()
    found = provenance("cpu") | dict(av=av.__version__) | open_many(options.videos, options.every)
    if options.record:
        write_json(options.record, found)
    print(*found["seen"], sep="\n")
    print(f"{found['kb_a_video']} ± {found['standard_error']} kB a video")
    if grows(found):
        raise SystemExit(grows(found))


if __name__ == "__main__":
    main()
