"""An index to serve in tests: videos that tell by their colour which second it is."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from promptswitch_nb.results import Copy
from promptswitch_nb.results import Hit
from promptswitch_nb.results import Hits
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.writing import write_video

LIGHTS = dict(red=(214, 39, 40), yellow=(240, 190, 30), green=(44, 160, 44), blue=(40, 80, 220))
NAMES = [
    b"plain.mp4",
    b'it\'s "quoted" & <b onclick=x>bold <img src=x onerror=alert(1)>.mp4',
    b"100% #1 ?a=b;c \\ ..%2f.mp4",
    b"two\nlines\tand a tab.mp4",
    b"caf\xe9 \xff.mp4",
    "\u202egnp.exe \u72d7.mp4".encode(),
]
SPARSE = {"g": "40", "sc_threshold": "0"}


def lights(seconds: int = 8, fps: int = 10, size: tuple[int, int] = (90, 160)) -> np.ndarray:
    """Draw a light that changes every second."""
    colours = np.array(list(LIGHTS.values()), np.uint8)[np.arange(seconds) % 4].repeat(fps, axis=0)
    return np.broadcast_to(colours[:, None, None], (len(colours), *size, 3))


def jpeg(colour: tuple[int, int, int]) -> bytes:
    """Write a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (160, 90), colour).save(file, "JPEG")
    return file.getvalue()


class Lights:
    """Find the seconds of videos by the name of their colour."""

    def __init__(self, folder: Path):
        self.folder, self.asked, self.looked_for = folder, [], []
        self.hits, self.paths = [], {}
        self.running = False
        for n, name in enumerate(NAMES):
            self.add(f"v{n}", folder / os.fsdecode(name))
        self.add("avi", folder / "old.avi", codec="mpeg4", options={})
        self.add("mkv", folder / "film.mkv")

    def add(self, file: str, path: Path, **options) -> None:
        """Write a video, and remember a window for each of its seconds."""
        write_video(path, lights(), fps=10, **(dict(options=SPARSE) | options))
        self.paths[file] = path
        for n in range(8):
            colour = list(LIGHTS.values())[n % 4]
            self.hits += [
                Hit(path, n, n + 1.0, 0.1, 0.05, jpeg(colour), f"{file}:{n}", file, 8.0, n)
            ]

    def search(self, query, k, **options) -> Hits:
        self.asked.append((query, k, options))
        if isinstance(query, Path):
            with Image.open(query) as image:
                pixel = np.array(image.convert("RGB").getpixel((0, 0)))
            far = {name: np.abs(pixel - colour).sum() for name, colour in LIGHTS.items()}
            query = min(far, key=far.get)
        if query.count('"') % 2:
            raise ConfigError(f"This quotation mark is never closed:\n    {query}\n    ^")
        names, found = list(LIGHTS), []
        for n, hit in enumerate(self.hits):
            fits = names[hit.shot % 4] in query
            score = (0.4 if fits else 0.1) - n / 1000
            copies = [Copy(hit.path, 0.0, 1.0, 1.0)] if n == 0 else []
            found += [replace(hit, score=score, confidence=0.9 if fits else 0.05, copies=copies)]
        found = [hit for hit in found if hit.confidence >= options.get("min_confidence", 0)]
        found.sort(key=lambda hit: -hit.score)
        there = any(name in query for name in names)
        return Hits(found[:k], verdict="" if there else "Nothing like that is here.")

    def similar(self, id, k) -> Hits:
        hit = {hit.id: hit for hit in self.hits}[id]
        return self.search(list(LIGHTS)[hit.shot % 4], k)

    def motion(self, query, hits) -> list[tuple[float, float, float]]:
        return [(h.score, h.score, -h.score if n < 2 else h.score) for n, h in enumerate(hits)]

    def why(self, query, id) -> dict:
        hit = {hit.id: hit for hit in self.hits}[id]
        frames = [(hit.start + t / 4, 0.1 * t) for t in range(4)]
        return dict(frames=frames, words=[(word, 1 / len(query)) for word in query.split()])

    def status(self) -> dict:
        skipped = [(self.folder / os.fsdecode(b"bad \xff\n.mp4"), "It is empty")]
        counts = dict(files=len(self.paths), windows=len(self.hits), done=3, total=8)
        return counts | dict(skipped=skipped, model="lights", running=self.running)

    def path_of(self, file) -> Path | None:
        self.looked_for.append(file)
        return self.paths.get(file)
