"""The package's modules import one another only as the design allows, and nothing that the package does not declare."""

import ast
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "promptswitch_nb"
LEAVES = [
    "clip",
    "files",
    "cube",
    "switch",
    "aggregation",
    "captioner",
    "losses",
    "video",
    "metrics",
]
DATA = {"datasets", "shapes"}
ALLOWED = {name: set() for name in LEAVES} | {
    "model": {"clip", "cube", "switch", "aggregation", "captioner"},
    "datasets": {"video"},
    "shapes": {"video", "datasets"},
    "train": {"model", "losses", "metrics"} | DATA,
    "evaluate": {"model", "metrics", "video"} | DATA,
    "search": {"model", "video"},
    "efficiency": {"model"},
    "baselines": {"clip", "aggregation"},
}
ENTRY_POINTS = {
    "cli",
    "demo",
}  # the command line and the demo start the other modules; no other module imports them
NAMES = {
    "open_clip_torch": "open_clip",
    "PyYAML": "yaml",
}  # where a distribution and its module are called differently


def modules() -> list[Path]:
    """Return the package's modules."""
    return sorted(path for path in (ROOT / PACKAGE).rglob("*.py") if not path.name.startswith("_"))


def imported(path: Path) -> set[str]:
    """Return the absolute names of all that a module imports, in functions too: `a.b` for `import a.b` and `from a.b import c`."""
    package = [PACKAGE, *path.relative_to(ROOT / PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(
                    [
                        *package[: len(package) - node.level + 1],
                        *([node.module] if node.module else []),
                    ]
                )
                if node.level
                else node.module
            )
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == PACKAGE else {base}
    return found


def ours(path: Path) -> set[str]:
    """Return the parts of the package that a module imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith(f"{PACKAGE}.")}


def name_of(path: Path) -> str:
    """Return a module's name in the table; all of a sub-package go by its name."""
    return path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_of_ours(path):
    if name_of(path) in ENTRY_POINTS:
        return
    assert name_of(path) in ALLOWED, f"{name_of(path)} is not in the table"
    extra = (
        ours(path)
        - ALLOWED[name_of(path)]
        - ({"baselines"} if name_of(path) == "baselines" else set())
    )
    assert not extra, f"{name_of(path)} must not import {sorted(extra)}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_of_others_are_declared(path):
    config = ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    names = [
        re.match(r"[\w-]+", requirement)[0]
        for requirement in config["DEFAULT"]["requirements"].split()
    ]
    declared = {NAMES.get(name, name) for name in names} | {PACKAGE} | set(sys.stdlib_module_names)
    undeclared = {name.split(".")[0] for name in imported(path)} - declared
    assert not undeclared, (
        f"{name_of(path)} imports {sorted(undeclared)}, which settings.ini does not list"
    )
