"""Published systems give the numbers of their released code, each folder of them.

What is compared with the folder `x` is in `golden_systems/x.py`: every function `check_…` there.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from golden import SYSTEMS
from golden import needs_golden
from golden import read_golden

pytestmark = needs_golden
COMPARED = {path.stem for path in Path(__file__).with_name("golden_systems").glob("*.py")}


def checks() -> Iterator:
    """List the checks of all systems."""
    for system in sorted(COMPARED):
        for name, check in vars(import_module(f"golden_systems.{system}")).items():
            if name.startswith("check_"):
                title = name.removeprefix("check_").replace("_", " ")
                yield pytest.param(system, check, id=f"{system}: {title}")


@pytest.mark.parametrize(("system", "check"), list(checks()))
def test_a_system(system, check):
    check(read_golden(system))


def test_each_folder_is_compared_and_each_comparison_has_its_folder():
    folders = {path.name for path in SYSTEMS.iterdir() if path.is_dir()}
    new, missing = sorted(folders - COMPARED), sorted(COMPARED - folders)
    assert not new, f"no comparison in golden_systems/ for {new}"
    assert not missing, f"no folder for the comparisons {missing}"
    assert COMPARED


@pytest.mark.parametrize("system", sorted(COMPARED))
def test_each_system_compares_everything(system):
    assert hasattr(import_module(f"golden_systems.{system}"), "check_everything")
