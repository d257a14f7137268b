"""Long videos in which it is known what happens when: moving shapes, joined by hard cuts.

Shared by the scripts that measure search: they join clips with `join_clips`, encode the videos with
`encode_windows`, and write what they found with `write_record`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from promptswitch_nb.annotations import read_json
from promptswitch_nb.evaluate import Checkpoint
from promptswitch_nb.files import write_json
from promptswitch_nb.gallery import evaluating
from promptswitch_nb.model import VideoCLIP
from promptswitch_nb.runs import provenance
from promptswitch_nb.system import unit
from promptswitch_nb.video import open_video
from promptswitch_nb.video import write_video
from promptswitch_nb.windows import Windowing
from promptswitch_nb.windows import read_clips

FPS = 6  # of moving shapes
FEWEST, MOST = 5, 10  # clips of a video
KINDS = ("any shapes", "one shape")  # the clips of a video: drawn from all, or all of one look


class Joined(NamedTuple):
    """Hold a video that was joined from clips, and what happens in it."""

    path: Path
    captions: list[str]  # of its clips
    spans: list[tuple[float, float]]  # seconds of each clip


def all_frames(path: Path) -> np.ndarray:  # (n,H,W,3) uint8
    """Read all frames of a video."""
    with open_video(path) as reader:
        return reader.frames(range(len(reader)))


def _split(records: list[dict], kind: str, rng: np.random.Generator) -> list[list[dict]]:
    """Deal clips to videos; what is left over and too short for one is left out."""
    shuffled = [records[n] for n in rng.permutation(len(records))]
    groups = {}
    for record in shuffled:
        look = "" if kind == "any shapes" else f"{record['colour']} {record['shape']}"
        groups.setdefault(look, []).append(record)
    videos = []
    for group in groups.values():
        while len(group) >= FEWEST:
            size = int(rng.integers(FEWEST, MOST + 1))
            videos.append(group[:size])
            group = group[size:]
    return [video for video in videos if len(video) >= FEWEST]


def join_clips(
    data: Path,  # a folder of moving shapes
    folder: Path,  # where the videos shall be
    kind: str,  # one of KINDS
    *,
    split: str = "test",
    seed: int = 0,
) -> list[Joined]:
    """Join clips to videos, each after a part of another clip, so that no window fits by luck."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    records = read_json(data / f"captions_{split}.json")
    joined = []
    videos = _split(records, kind, rng)
    if not videos:
        raise ValueError(f"{data} holds too few clips of {kind}: a video needs at least {FEWEST}")
    for n, video in enumerate(videos):
        clips = [all_frames(data / "videos" / record["video"]) for record in video]
        other = all_frames(data / "videos" / records[rng.integers(len(records))]["video"])
        parts = [other[: rng.integers(len(other))], *clips]
        ends = np.cumsum([len(part) for part in parts]) / FPS
        path = write_video(folder / f"{n:04}.mp4", np.concatenate(parts), fps=FPS)
        captions = [record["captions"][0] for record in video]
        joined.append(Joined(path, captions, list(zip(ends[:-1].tolist(), ends[1:].tolist()))))
    return joined


class Encoded(NamedTuple):
    """Hold the windows of a video, as an index keeps them."""

    spans: np.ndarray  # (N,2) seconds
    pooled: Tensor  # (N,E) unit norm
    frames: Tensor  # (N,F,E) unit norm
    times: np.ndarray  # (N,F) seconds of the frames


def encode_windows(
    model: VideoCLIP,
    path: Path,  # a video file
    windowing: Windowing,
) -> Encoded:
    """Encode windows of a video as an index does."""
    clips = list(read_clips(path, model.preprocess, windowing))
    with evaluating(model):
        features = model.video_features(torch.stack([clip.frames for clip in clips]))
    spans = np.array([(clip.window.start, clip.window.end) for clip in clips])
    times = np.array([clip.times for clip in clips])
    return Encoded(spans, features["pooled"], unit(features["frames"]), times)


def share(hits: list[bool]) -> dict[str, float]:  # percent, its standard error, and of how many
    """Say how often something was right."""
    p, n = float(np.mean(hits)), len(hits)
    return dict(percent=100 * p, se=100 * (p * (1 - p) / n) ** 0.5, n=n)


def write_record(
    path: Path,  # a JSON file
    checkpoint: Checkpoint,  # what was measured
    data: Path,  # a folder of moving shapes
    settings: dict,  # of the measurement, seed included
    found: dict,  # the numbers, by name
) -> None:
    """Write numbers with all that they depend on."""
    record = checkpoint.record or {}
    model = dict(
        system=(record.get("config") or {}).get("model", ""),
        fingerprint=checkpoint.fingerprint,
        training={key: record.get(key) for key in ("seed", "commit", "step")},
    )
    made = read_json(data / "shapes.json")
    write_json(path, dict(model=model, data=made, settings=settings, **provenance("cpu"), **found))
