"""What the tests against the numbers of released systems have in common."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

TEST_DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")
needs_golden = pytest.mark.skipif(not TEST_DATA, reason="PROMPTSWITCH_TEST_DATA is not set")


def read_golden(system: str) -> dict:
    """Read all that is recorded of a system: its tensors by file, and "expected"."""
    folder = Path(TEST_DATA, "golden", "systems", system)
    files = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    return files | dict(expected=json.loads((folder / "expected.json").read_text()))


def flat(value: object, name: str = "") -> dict[str, float]:
    """List the numbers of nested dicts by their dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        k: v for key, x in value.items() for k, v in flat(x, f"{name}.{key}".strip(".")).items()
    }


def renamed(released: str, names: dict[str, str]) -> str:
    """Give a released weight our name, by how its own begins."""
    for theirs, ours in names.items():
        if released.startswith(theirs):
            return released.replace(theirs, ours)
    raise KeyError(released)
