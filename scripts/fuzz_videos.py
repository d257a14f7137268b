"""Damage many small videos, and read each as `cache`, `check-data` and `encode` do, in a process.

`python scripts/fuzz_videos.py --record results/faults/fuzz.json` tries 2,000 files. It ends
with an error where a file is neither decoded nor listed with a reason, or where a frame is given
under a wrong number.
"""

import argparse
import os
import random
import re
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from promptswitch_nb.apart import Failed
from promptswitch_nb.apart import in_processes
from promptswitch_nb.command import Meter
from promptswitch_nb.data_check import decode_error
from promptswitch_nb.encode import FileEnd
from promptswitch_nb.encode import read_file
from promptswitch_nb.files import write_json
from promptswitch_nb.frames import Preprocess
from promptswitch_nb.frames import sample_indices
from promptswitch_nb.kept_frames import StorePlan
from promptswitch_nb.kept_frames import compress_video
from promptswitch_nb.probe import as_shown
from promptswitch_nb.probe import probe_video
from promptswitch_nb.runs import provenance
from promptswitch_nb.video import PyAVReader
from promptswitch_nb.video import VideoError
from promptswitch_nb.video import open_video
from promptswitch_nb.video import read_frames
from promptswitch_nb.video import write_video
from promptswitch_nb.windows import Windowing

FRAMES = 36
H264 = dict(codec="libx264", options={"g": "12", "bf": "2"})
KINDS = {  # container → how it is written
    "h264.mp4": H264,
    "h264.mkv": H264,
    "h264.mov": H264,
    "h264.ts": H264,
    "h264.flv": H264,
    "hevc.mp4": dict(codec="libx265", options={"x265-params": "log-level=none:keyint=12"}),
    "vp8.webm": dict(codec="libvpx", options={"g": "12", "deadline": "realtime"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"g": "12", "deadline": "realtime"}),
    "mpeg4.avi": dict(codec="mpeg4", options={"g": "12"}),
    "mjpeg.avi": dict(codec="mjpeg", pix_fmt="yuvj420p"),
    "mpeg2.mpg": dict(codec="mpeg2video", options={"g": "12"}),
    "wmv2.asf": dict(codec="wmv2", options={"g": "12"}),
    "prores.mov": dict(codec="prores_ks", pix_fmt="yuv422p10le"),
    "palette.gif": dict(codec="gif", pix_fmt="rgb8"),
}


@lru_cache
def clips() -> dict[str, bytes]:
    """Make a clip of each kind for which there is an encoder."""
    rng, made = np.random.default_rng(0), {}
    grain = rng.integers(0, 30, (FRAMES, 64, 96, 3), dtype=np.uint8)
    slope = np.add.outer(np.arange(64), np.arange(96))[None, :, :, None]
    steps = 4 * np.arange(FRAMES)[:, None, None, None]
    frames = grain + ((slope + steps) % 190).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for kind, how in KINDS.items():
            with suppress(av.FFmpegError, ValueError):
                made[kind] = write_video(Path(folder, kind), frames, fps=25, **how).read_bytes()
    return made


def write_clips(folder: Path) -> list[Path]:
    """Write the clips."""
    for kind, data in clips().items():
        (folder / kind).write_bytes(data)
    return [folder / kind for kind in clips()]


def flipped(data: bytearray, rng: random.Random, first: int, last: int) -> bytearray:
    """Write other bytes at some places between two."""
    for _ in range(rng.choice((1, 4, 30))):
        data[rng.randrange(first, last)] = rng.randrange(256)
    return data


def block(data: bytearray, rng: random.Random) -> tuple[int, int]:
    """Choose a part of a file."""
    first = rng.randrange(len(data))
    return first, min(len(data), first + int(2 ** rng.uniform(3, 14)))


def damage(data: bytes, how: str, rng: random.Random) -> bytes:
    """Damage the content of a file."""
    data = bytearray(data)
    first, last = block(data, rng)
    if how == "bytes changed":
        return flipped(data, rng, 0, len(data))
    if how == "header changed":
        return flipped(data, rng, 0, 1000)
    if how == "end changed":  # where mp4 and mov have their tables, and avi its index
        return flipped(data, rng, len(data) - 2000, len(data))
    if how == "end cut off":
        return data[:first]
    if how == "beginning cut off":
        return data[first:]
    if how == "block of zeros":
        data[first:last] = bytes(last - first)
    if how == "block of noise":
        data[first:last] = rng.randbytes(last - first)
    if how == "block removed":
        del data[first:last]
    if how == "block twice":
        data[first:first] = data[first:last]
    if how == "blocks swapped":
        other = rng.randrange(len(data))
        size = min(last - first, len(data) - other)
        part = data[first : first + size]
        data[first : first + size] = data[other : other + size]
        data[other : other + size] = part
    return data


DAMAGES = (
    *("bytes changed", "header changed", "end changed", "end cut off", "beginning cut off"),
    *("block of zeros", "block of noise", "block removed", "block twice", "blocks swapped"),
)


def plain(path: Path) -> list[tuple[int | None, np.ndarray]]:
    """Decode a file from its beginning, and pass over what cannot be decoded: times, pictures."""
    pictures = []
    size = dict(zip(("height", "width"), probe_video(path).size))
    with open(path, "rb") as file, av.open(file, metadata_errors="replace") as container:
        container.streams.video[0].codec_context.thread_count = 1
        with suppress(av.FFmpegError):
            for packet in container.demux(video=0):
                with suppress(av.FFmpegError):
                    for frame in packet.decode():
                        pictures.append((frame.pts, frame.to_ndarray(format="rgb24", **size)))
    return pictures


@lru_cache
def numbers_of(clip: Path) -> dict[bytes, int]:
    """List the pictures of a clip that is not damaged, with their numbers."""
    return {picture.tobytes(): number for number, (_, picture) in enumerate(plain(clip))}


def whole_frames(path: Path, clip: Path, reader: PyAVReader) -> tuple[dict, dict]:
    """Find the pictures of a damaged file that are whole, by their places and by their times.

    Where a packet cannot be decoded these differ: it has a number, and gives no frame. A decoder
    may also give an older picture for such a packet, which does not count here.
    """
    times = None if reader.probe.timeline is None else reader.probe.timeline.times
    numbers, newest, by_place, by_time = numbers_of(clip), -1, {}, {}
    for place, (ticks, picture) in enumerate(plain(path)):
        shown = numbers.get(picture.tobytes(), -1)
        if shown > newest:
            newest, by_place[place] = shown, picture
            by_time[place if times is None else int(np.searchsorted(times, ticks))] = picture
    return by_place, by_time


def compare_frames(path: Path, clip: Path) -> dict[str, Any]:
    """Compare twelve frames with the whole pictures that have their numbers."""
    reader = open_video(path)
    frames = read_frames(reader, partial(sample_indices, n_frames=12))
    places, compared, wrong = whole_frames(path, clip, reader), 0, []
    for number, frame in zip(sample_indices(len(reader), 12).tolist(), frames):
        if all(number in pictures for pictures in places):
            view = reader.probe.aspect, reader.probe.matrix
            right = [as_shown(pictures[number][None], *view)[0] for pictures in places]
            wrong += [] if any(np.array_equal(frame, one) for one in right) else [number]
            compared += 1
    return dict(compared=compared, wrong=wrong)


PREPROCESS = Preprocess(image_size=32, n_frames=4, test_frames=4, frames_per_chunk=None)
PLAN = StorePlan(frames=8, exact=(6, 12))
READERS = ("cache", "check-data", "encode")


def read_as_all(paths: tuple[Path, Path]) -> dict[str, Any]:
    """Read a file as each command does: its reason not to, or "" where it was decoded.

    An error that is no `VideoError` is raised here, and counted: a command might stop at it.
    """
    path, clip = paths
    found = {"cache": "", "check-data": decode_error(path) or "", "compared": 0, "wrong": []}
    try:
        compress_video(path, PLAN)
        found |= compare_frames(path, clip)
    except VideoError as error:
        found["cache"] = error.reason
    *windows, end = read_file(os.fsencode(path), PREPROCESS, Windowing(seconds=1))
    assert isinstance(end, FileEnd) and bool(windows) != bool(end.reason)
    return found | {"encode": end.reason}


def write_damaged(folder: Path, count: int, seed: int) -> dict[tuple, tuple[Path, Path]]:
    """Write damaged files, each container with each damage in turn; the files and their clips."""
    kinds, files = [path.name for path in write_clips(folder)], {}
    for number in range(count):
        kind = kinds[number % len(kinds)]
        how = DAMAGES[(number + number // len(kinds)) % len(DAMAGES)]
        path = folder / f"{number}-{kind}"
        path.write_bytes(damage(clips()[kind], how, random.Random(f"{seed}-{number}")))
        files[number, kind, how] = path, folder / kind
    return files


def fuzz(
    count: int,  # files
    seed: int = 0,
    seconds: float = 30,  # most time for a file
) -> dict:
    """Read damaged files, and count what became of them."""
    began, tally, faults, reasons = time.monotonic(), {}, [], Counter()
    with tempfile.TemporaryDirectory() as folder, Meter("reading", count, "video") as meter:
        files = write_damaged(Path(folder), count, seed)
        results = in_processes(read_as_all, files, workers=1, seconds=seconds)
        for (number, kind, how), found in results:
            meter.add(note=f"{len(faults)} faults")
            row = tally.setdefault(kind, {}).setdefault(how, Counter())
            row["files"] += 1
            if isinstance(found, Failed):  # the process died, did not end, or met another error
                row["failed"] += 1
                faults.append(f"{number}, {kind}, {how}: {found.reason}")
                continue
            row["frames compared"] += found["compared"]
            listed = sum(bool(found[name]) for name in READERS)
            row[{0: "read", len(READERS): "listed"}.get(listed, "read by some")] += 1
            reasons.update(re.sub(r"\d+", "N", found[name]) for name in READERS if found[name])
            if found["wrong"]:
                faults.append(f"{number}, {kind}, {how}: wrong frames {found['wrong']}")
    total = sum((row for rows in tally.values() for row in rows.values()), Counter())
    taken = time.monotonic() - began
    about = dict(files=count, seed=seed, seconds=round(taken), faults=faults, total=total)
    return about | dict(reasons=dict(reasons.most_common()), kinds=tally)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="a JSON file for what was found")
    options = parser.parse_args()
    found = provenance("cpu") | dict(av=av.__version__) | fuzz(options.files, options.seed)
    if options.record:
        write_json(options.record, found)
    print(f"{found['total']} in {found['seconds']} s")
    if found["faults"]:
        raise SystemExit("\n".join(found["faults"]))


if __name__ == "__main__":
    main()
