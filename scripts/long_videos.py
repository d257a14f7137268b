"""Read twelve frames of a two-hour video, and frames in 4K; tell the seconds and the memory.

`python scripts/long_videos.py --record results/faults/long.json` makes the files, some 10 minutes
of one core. It ends with an error where a frame is not the right one or 4K costs too much memory.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import repeated

from promptswitch_nb.encode import read_file
from promptswitch_nb.files import write_json
from promptswitch_nb.frames import Preprocess
from promptswitch_nb.frames import sample_indices
from promptswitch_nb.kept_frames import StorePlan
from promptswitch_nb.kept_frames import compress_video
from promptswitch_nb.probe import probe_video
from promptswitch_nb.runs import provenance
from promptswitch_nb.video import PyAVReader
from promptswitch_nb.video import VideoReader
from promptswitch_nb.video import load_frames
from promptswitch_nb.video import open_video
from promptswitch_nb.video import write_video
from promptswitch_nb.windows import Windowing

FPS, WANTED = 25, 12
BITS = 2 ** np.arange(24).reshape(4, 6)  # a frame shows its number in 4 × 6 black or white fields


def write_numbered(path: Path, count: int) -> Path:
    """Write a video of 64 × 96 pixels whose frames show their numbers, a key frame each 10 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(count):
            fields = np.where(number & BITS, 235, 20).astype(np.uint8)
            picture = np.repeat(np.kron(fields, np.ones((16, 16), np.uint8))[..., None], 3, 2)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown_numbers(frames: np.ndarray) -> list[int]:
    """Read the numbers that frames of a numbered video show."""
    middles = frames[:, 8::16, 8::16].mean(-1) > 127
    return (middles * BITS).sum((1, 2)).tolist()


def write_minute(path: Path) -> Path:
    """Write a minute of 240 × 320 pixels with texture and motion."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    moved = (np.roll(still, 2 * t, axis=1) for t in range(60 * FPS))
    grain = rng.integers(0, 80, (16, 240, 320, 3), dtype=np.uint8)
    frames = np.stack([picture // 3 * 2 + grain[t % 16] for t, picture in enumerate(moved)])
    return write_video(path, frames, fps=FPS)


def decode_through(path: Path, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Decode a video from its beginning to the last of some frames, and give these."""
    wanted, number = set(numbers.tolist()), 0
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            if number in wanted:
                yield frame.to_ndarray(format="rgb24")
            number += 1
            if number > max(wanted):
                return


def measure(path: Path) -> tuple[dict, np.ndarray]:
    """Take the time of twelve frames of a video: with jumps, and decoding through."""
    began = time.monotonic()
    probe = probe_video(path)
    row = dict(frames=probe.n_frames, megabytes=round(path.stat().st_size / 1e6, 1))
    row["probe_seconds"] = round(time.monotonic() - began, 2)
    numbers = sample_indices(probe.n_frames, WANTED)

    def timed(reader: VideoReader) -> np.ndarray:
        began = time.monotonic()
        frames = reader.frames(numbers)
        row[f"{reader.backend}_seconds"] = round(time.monotonic() - began, 2)
        return frames

    found = timed(PyAVReader(path, probe))
    row["chosen"] = open_video(path).backend
    if row["chosen"] != "pyav":
        assert np.array_equal(timed(open_video(path)), found), "decord gives other frames"
    began = time.monotonic()
    right = np.stack(list(decode_through(path, numbers)))
    row["through_seconds"] = round(time.monotonic() - began, 2)
    assert np.array_equal(found, right), "jumps give other frames than decoding through"
    return row, found


def two_hours(folder: Path, minutes: int = 120) -> dict[str, dict]:
    """Measure a long video whose frames show their numbers, and one of ordinary size."""
    numbered, frames = measure(write_numbered(folder / "numbered.mp4", 60 * FPS * minutes))
    assert shown_numbers(frames) == sample_indices(numbered["frames"], WANTED).tolist()
    minute = write_minute(folder / "minute.mp4")
    ordinary, _ = measure(repeated(minute, folder / "240p.mp4", minutes))
    return {"numbered 64 × 96": numbered, "240 × 320": ordinary}


# 4K -----------------------------------------------------------------------------------------------

SEES = Preprocess(test_frames=WANTED, n_frames=WANTED, transform="crop")
WORKS = {
    "load_frames": lambda path: load_frames(path, SEES),
    "in training": lambda path: load_frames(path, SEES, train=True, rng=np.random.default_rng(0)),
    "cache": lambda path: compress_video(path, StorePlan()),
    "encode": lambda path: [*read_file(str(path).encode(), SEES, Windowing())],
}
HIGH, WIDE = 2160, 3840
FRAMES_MB = WANTED * HIGH * WIDE * 3 / 1e6
DECODER_MB = 12 * HIGH * WIDE * 1.5 / 1e6  # a dozen pictures to which others refer


def write_4k(path: Path, count: int = 24, scale: int = 24, preset: str = "medium") -> Path:
    """Write a video in 4K; `scale` makes it smaller."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, HIGH // 24, WIDE // 24, 3), dtype=np.uint8)
    frames = small.repeat(scale, 1).repeat(scale, 2)
    return write_video(path, frames, fps=FPS, options={"preset": preset})


def memory(name: str) -> float:
    """Read a line of what the system knows of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 / 1e6


def peak_of(work: str, small: Path, large: Path) -> float:
    """Do a work on a small video, and on a large one: the memory that this takes at most, in MB."""
    WORKS[work](small)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak until now
    before = memory("VmRSS")
    WORKS[work](large)
    return memory("VmHWM") - before


def peaks(folder: Path, works: tuple[str, ...] = (*WORKS,), **how) -> dict[str, float]:
    """Measure the memory of each work on a video in 4K, in a process of its own."""
    paths = write_4k(folder / "small.mp4", scale=2), write_4k(folder / "4k.mp4", **how)
    found = {}
    for work in works:
        command = [sys.executable, __file__, "--peak", work, *map(str, paths)]
        found[work] = round(json.loads(subprocess.check_output(command)), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--record", type=Path, help="a JSON file for what was found")
    parser.add_argument("--peak", nargs=3, help="a work, a small video and a large one")
    options = parser.parse_args()
    if options.peak:
        print(peak_of(*options.peak))
        return
    found = provenance("cpu") | dict(av=av.__version__, minutes=options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        found["long"] = two_hours(Path(folder), options.minutes)
        limits = dict(frames_mb=round(FRAMES_MB, 1), decoder_mb=round(DECODER_MB, 1))
        found["4k"] = limits | dict(peak_mb=peaks(Path(folder)))
    if options.record:
        write_json(options.record, found)
    print(json.dumps(found, indent=1))
    too_much = [w for w, mb in found["4k"]["peak_mb"].items() if mb > FRAMES_MB + DECODER_MB]
    if too_much:
        raise SystemExit(f"more memory than {WANTED} frames and the decoder's: {too_much}")


if __name__ == "__main__":
    main()
