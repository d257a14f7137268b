"""What the comparisons with the numbers of released systems have in common."""

import json
import os
from collections.abc import Collection
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

TEST_DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")
SYSTEMS = Path(TEST_DATA or "", "golden", "systems")  # a folder a released system
needs_golden = pytest.mark.skipif(not TEST_DATA, reason="PROMPTSWITCH_TEST_DATA is not set")


def read_golden(system: str) -> dict:
    """Read all that is recorded of a system: its tensors by file, and "expected"."""
    folder = SYSTEMS / system
    files = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    return files | dict(expected=json.loads((folder / "expected.json").read_text()))


def flat(value: object, name: str = "") -> dict[str, object]:
    """List what nested dicts hold by dotted names."""
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


def bound_of(name: str) -> float:
    """Tell how far a number may be from the released one, absolutely and relatively."""
    return 1e-4 if "grad" in name else 1e-5


def compare(
    golden: dict,
    tensors: dict[str, Tensor],
    numbers: dict[str, object],
    *,
    given: Collection[str] = (),
    settings: Collection[str] = (),
    factors: Mapping[str, float] | None = None,
) -> None:
    """Demand that each tensor and each number of a folder is made, and is as it is recorded.

    Numbers have dotted names. Not demanded are the tensors that are `given`, and the numbers
    under the names of `settings`. Whole numbers must be equal. What is recorded times a factor may
    be off by as much more.
    """
    recorded = {k: v for k, v in golden["expected"].items() if k not in {*settings, "torch"}}
    recorded = flat(recorded)
    assert tensors.keys() == golden["outputs"].keys() - set(given)
    assert numbers.keys() == recorded.keys()
    assert tensors
    for name, ours in tensors.items():
        theirs, bound = golden["outputs"][name], bound_of(name)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, name
        moved = "shift" in name and "unshifted" not in name  # from place to place, not computed
        bound = bound if theirs.is_floating_point() and not moved else 0
        close_enough(name, ours.detach(), theirs, bound, (factors or {}).get(name, 1))
    for name, ours in numbers.items():
        theirs = recorded[name]
        if isinstance(theirs, float) or (isinstance(theirs, list) and isinstance(theirs[0], float)):
            factor = (factors or {}).get(name, 1)
            close_enough(name, torch.tensor(ours), torch.tensor(theirs), bound_of(name), factor)
        else:
            assert ours == theirs, name


def close_enough(name: str, ours: Tensor, theirs: Tensor, bound: float, factor: float = 1) -> None:
    """Demand that numbers differ by no more than a bound, and a share of the bound of their own."""
    torch.testing.assert_close(
        ours, theirs, rtol=bound, atol=bound * factor, msg=lambda found: f"{name}: {found}"
    )
