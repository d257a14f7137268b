"""Measure how well a model finds videos, moments, and two moments in their order.

    python scripts/search_quality.py RUN/best SHAPES results/search_quality/NAME.json

RUN/best is what training on moving shapes saved, SHAPES the folder of moving shapes. Takes about
two minutes on one core.
"""

import sys
import tempfile
from pathlib import Path

import joined_shapes
import numpy as np
import torch
from joined_shapes import KINDS
from joined_shapes import Encoded
from joined_shapes import Joined
from joined_shapes import encode_windows
from joined_shapes import join_clips
from joined_shapes import share
from joined_shapes import write_record

from promptswitch_nb.annotations import read_json
from promptswitch_nb.config import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.evaluate import read_checkpoint
from promptswitch_nb.model import VideoCLIP
from promptswitch_nb.moments import best_moment
from promptswitch_nb.moments import half_way
from promptswitch_nb.moments import in_order
from promptswitch_nb.moments import join_windows
from promptswitch_nb.queries import embed
from promptswitch_nb.queries import parse_query
from promptswitch_nb.windows import Windowing

CLIP = 2.0  # seconds of a clip
WINDOWS = {
    "one clip long": Windowing(CLIP, 0.5, find_cuts=False),
    "one clip long, 75 % overlap": Windowing(CLIP, 0.75, find_cuts=False),
    "two clips long": Windowing(2 * CLIP, 0.5, find_cuts=False),
    "three clips long": Windowing(3 * CLIP, 0.5, find_cuts=False),
    "between cuts": Windowing(CLIP, 0.5, find_cuts=True),
}
GOOD = 0.5  # intersection over union of a moment that counts as found
PAIRS = 8  # order queries of a video


def overlap_of(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Divide the intersection of two spans by their union."""
    both = min(a[1], b[1]) - max(a[0], b[0])
    return max(both, 0.0) / (max(a[1], b[1]) - min(a[0], b[0]))


def vectors_of(model: VideoCLIP, captions: list[str]) -> torch.Tensor:  # (Q,E)
    """Encode captions as a search does."""
    return torch.stack([embed(parse_query(caption).steps[0], model) for caption in captions])


def search(model: VideoCLIP, folder: Path, data: Path) -> dict:
    """Search the single clips with their captions, as 08_evaluate does and as an index does."""
    config = EvaluateConfig(
        str(folder), "shapes", str(data), run="search", results_dir=tempfile.mkdtemp()
    )
    results, _ = evaluate(config)
    records = read_json(data / "captions_test.json")
    paths = [data / "videos" / record["video"] for record in records]
    videos = torch.cat([encode_windows(model, path, Windowing(0)).pooled for path in paths])
    texts = vectors_of(model, [record["captions"][0] for record in records])
    first = (texts @ videos.T).argmax(1)
    hits = (first == torch.arange(len(first))).tolist()
    return dict(evaluate=results["metrics"]["t2v/R@1"], index=share(hits))


def find(query: torch.Tensor, video: Encoded) -> dict[str, tuple[float, float]]:
    """Find the moment of a query in a video: the window, refined in it, and over all windows."""
    best = int((video.pooled @ query).argmax())
    window = tuple(video.spans[best].tolist())
    scores = (video.frames @ query).numpy()
    usual = float(scores.mean())
    baseline = half_way(scores[best], usual)
    refined = best_moment(scores[best], video.times[best], baseline, window)
    curve = join_windows(scores, video.times)
    bounds = (0.0, float(video.spans[:, 1].max()))
    across = best_moment(*curve, half_way(curve.scores, usual), bounds)
    return {"window": window, "refined": refined[:2], "across windows": across[:2]}


def moments(texts: list[torch.Tensor], videos: list[Joined], encoded: list[Encoded]) -> dict:
    """Look for each clip in its own video, and in all videos."""
    found = {}
    every = torch.cat([video.pooled for video in encoded])
    owner = np.repeat(np.arange(len(encoded)), [len(video.pooled) for video in encoded])
    spans = np.concatenate([video.spans for video in encoded])
    for n, (vectors, video, windows) in enumerate(zip(texts, videos, encoded)):
        for query, truth in zip(vectors, video.spans):
            for name, moment in find(query, windows).items():
                found.setdefault(name, []).append(overlap_of(moment, truth) >= GOOD)
            best = int((every @ query).argmax())
            right = owner[best] == n and overlap_of(tuple(spans[best]), truth) >= GOOD
            found.setdefault("window of all videos", []).append(bool(right))
    return {name: share(hits) for name, hits in found.items()}


def orders(texts: list[torch.Tensor], videos: list[Joined], encoded: list[Encoded]) -> dict:
    """Ask for two clips in their order and in the other one; the right one must score higher."""
    rng, right, found = np.random.default_rng(0), [], []
    for vectors, video, windows in zip(texts, videos, encoded):
        scores = (vectors @ windows.pooled.T).numpy()
        starts, ends = windows.spans.T
        for _ in range(PAIRS):
            a, b = sorted(rng.choice(len(vectors), 2, replace=False).tolist())
            order = in_order(scores[[a, b]], starts, ends)
            right.append(order.score > in_order(scores[[b, a]], starts, ends).score)
            places = zip(order.rows, (a, b))
            near = [overlap_of(windows.spans[row], video.spans[clip]) for row, clip in places]
            found.append(bool(near) and min(near) >= GOOD)
    return {"right order": share(right), "both moments": share(found)}


def measure(model: VideoCLIP, data: Path, kind: str, *, seed: int) -> dict:
    """Measure moments and orders on joined videos of a kind."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = join_clips(data, Path(folder), kind, seed=seed)
        texts = [vectors_of(model, video.captions) for video in videos]
        for name, windowing in WINDOWS.items():
            encoded = [encode_windows(model, video.path, windowing) for video in videos]
            found[name] = moments(texts, videos, encoded)
            if windowing.seconds == CLIP:  # longer ones hold both clips
                found[name] |= orders(texts, videos, encoded)
    clips = sum(len(video.captions) for video in videos)
    return dict(videos=len(videos), clips=clips, windows=found)


def main(folder: str, data: str, out: str) -> None:
    torch.set_num_threads(1)
    checkpoint = read_checkpoint(folder)
    model = checkpoint.model.eval()
    settings = dict(seed=0, fewest=joined_shapes.FEWEST, most=joined_shapes.MOST, iou=GOOD)
    found = dict(search=search(model, Path(folder), Path(data)))
    for kind in KINDS:
        found[kind] = measure(model, Path(data), kind, seed=settings["seed"])
    write_record(Path(out), checkpoint, Path(data), settings, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
