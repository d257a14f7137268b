"""A room imports the rooms above it, never those below, and nothing that is not declared."""

import ast
import re
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "promptswitch_nb"

# The rooms in the order of their notebooks, which is the order of reading.
ROOMS = [
    "tokens",
    "clip",
    "reading",
    "weights",
    "files",
    "settings",
    "command",
    "registry",
    "figures",
    "cube",
    "switch",
    "aggregation",
    "captioner",
    "losses",
    "fusion",
    "xpool",
    "frames",
    "writing",
    "probe",
    "raw_frames",
    "video",
    "annotations",
    "video_files",
    "kept_frames",
    "frame_store",
    "samples",
    "apart",
    "batches",
    "released",
    "system",
    "saving",
    "hub",
    "model",
    "formats",
    "datasets",
    "data_check",
    "metrics",
    "motions",
    "shapes",
    "gallery",
    "config",
    "distributed",
    "runs",
    "caching",
    "setup",
    "steps",
    "preflight",
    "train",
    "evaluate",
    "studies",
    "demo",
    "reproduce",
    "cli",
    *("windows", "rows", "encode", "shards", "vector_store", "lance_store", "milvus"),
    *("queries", "moments", "confidence", "duplicates", "indexing", "results", "finding"),
    *("catalogue", "search", "cutting", "playing", "guard", "interface", "answers", "serve"),
    "asking",
    "efficiency",
    "ablations",
    "speed",
    "mteb",
]
# These take tensors and plain numbers, and know no model and no config.
LEAVES = {*ROOMS[: ROOMS.index("system")], "metrics", "motions"}
# What the baselines may know, besides what a line of them has in common; no family of them
# imports another, but by name from the registry.
CORE = ROOMS[: ROOMS.index("model") + 1]
SHARED = {f"{PACKAGE}.baselines.shared", f"{PACKAGE}.baselines.words"}
# These start something; no other room imports them.
ENDS = {
    *("train", "evaluate", "studies", "demo", "reproduce", "cli", "caching"),
    *("efficiency", "ablations", "speed", "mteb", "serve", "asking"),
}
NAMES = {"open_clip_torch": "open_clip", "PyYAML": "yaml", "pillow": "PIL"}  # if different
# Rooms that may import more, and which keys of settings.ini say what.
SEARCH = ["rows", "encode", "shards", "vector_store", "lance_store", "milvus", "indexing"]
SEARCH += ["guard", "answers", "serve"]
EXTRAS = {"mteb": ["mteb_requirements"]} | {room: ["search_requirements"] for room in SEARCH}
EXTRAS |= {room: ["frames_requirements"] for room in ("kept_frames", "frame_store")}
EXTRAS["milvus"] = ["search_requirements", "milvus_requirements"]
EXTRAS["shards"] = ["search_requirements", "ray_requirements"]


def modules() -> list[Path]:
    """Return the package's modules."""
    paths = (ROOT / PACKAGE).rglob("*.py")
    return sorted(path for path in paths if not path.name.startswith("_"))


def imported(path: Path) -> set[str]:
    """Return the absolute names of all that a module imports, in functions too.

    `a.b` stands for `import a.b` and for `from a.b import c`.
    """
    package = [PACKAGE, *path.relative_to(ROOT / PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module
            if node.level:
                parts = package[: len(package) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            whole = base == PACKAGE  # from promptswitch_nb import train
            found |= {f"{base}.{alias.name}" for alias in node.names} if whole else {base}
    return found


def ours(path: Path) -> set[str]:
    """Return the rooms that a module imports; what baselines share is no other room to them."""
    names = imported(path) - (SHARED if room_of(path) == "baselines" else set())
    return {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}


def room_of(path: Path) -> str:
    """Return a module's name in the table; all of a sub-package go by its name."""
    return path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]


def test_the_table_is_the_order_of_the_notebooks():
    exported = []
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        source = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
        exported += re.findall(r"^#\|\s*default_exp (\w+)", source, re.M)
    assert exported == ROOMS


@pytest.mark.parametrize("path", modules(), ids=room_of)
def test_a_room_imports_only_rooms_above_it(path):
    room = room_of(path)
    above = CORE if room == "baselines" else ROOMS[: ROOMS.index(room)]
    below = {name for name in ours(path) if name not in above}
    assert not below, f"{room} must not import {sorted(below)}, which come after it"
    if room in LEAVES:
        assert ours(path) <= LEAVES, f"{room} must know {sorted(ours(path) - LEAVES)} by its inputs"
    if room not in ENDS:
        assert not ours(path) & ENDS, f"{room} must not import {sorted(ours(path) & ENDS)}"


@pytest.mark.parametrize("path", modules(), ids=room_of)
def test_imports_of_others_are_declared(path):
    config = ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    keys = ["requirements", *EXTRAS.get(room_of(path), [])]
    requirements = [name for key in keys for name in config["DEFAULT"][key].split()]
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]
    declared = {NAMES.get(name, name) for name in names} | {PACKAGE} | set(sys.stdlib_module_names)
    undeclared = {name.split(".")[0] for name in imported(path)} - declared
    assert not undeclared, f"{room_of(path)} imports {sorted(undeclared)}: see settings.ini"


PROMISED = """
    datasets: load_pairs write_example GalleryDataset Pair
    video: load_frames write_video VideoError frame_transform open_video
    frames: sample_indices
    train: TrainConfig train make_gallery
    evaluate: EvaluateConfig evaluate
    model: PromptSwitch load_model get_model_class
    losses: contrastive caption frequent_word_weights
    metrics: retrieval_metrics
    search: VideoIndex
"""


@pytest.mark.parametrize("line", PROMISED.split("\n")[1:-1], ids=lambda line: line.split(":")[0])
def test_what_users_import_is_where_they_look_for_it(line):
    room, names = line.split(":")
    module = import_module(f"{PACKAGE}.{room.strip()}")
    assert all(hasattr(module, name) for name in names.split())
