"""Rows that train side by side: their lines, the end of one, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promptswitch_nb.demo import ROWS
from promptswitch_nb.demo import SHARED
from promptswitch_nb.demo import run_rows
from promptswitch_nb.demo import side_by_side
from promptswitch_nb.studies import Place
from promptswitch_nb.studies import Study
from promptswitch_nb.studies import read_records

WAITS = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
STUBBORN = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {WAITS}"
SCRIPT = f"""
import sys
from promptswitch_nb.demo import side_by_side

commands = dict(a=[sys.executable, "-c", {WAITS!r}], b=[sys.executable, "-c", {WAITS!r}])
with side_by_side(commands) as lines:
    while True:
        print(*lines.get(), flush=True)
"""


def python(code: str) -> list[str]:
    """Make the command that runs a line of Python."""
    return [sys.executable, "-c", code]


def has_ended(pid: int) -> bool:
    """Say whether there is no such process, or only what is left of one that ended."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.fixture(autouse=True)
def linux():
    """Processes are looked up under /proc."""
    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc here")


def test_lines_come_with_the_name_of_their_command_and_the_status_is_last():
    codes = dict(a="print('one'); print('two')", b="import sys; sys.exit('broken')")
    found = {name: [] for name in codes}
    with side_by_side({name: python(code) for name, code in codes.items()}) as lines:
        while any(not said or isinstance(said[-1], str) for said in found.values()):
            name, said = lines.get(timeout=60)
            found[name].append(said)
    assert found == dict(a=["one", "two", 0], b=["broken", 1])


@pytest.mark.parametrize("code", [WAITS, STUBBORN])
def test_what_still_runs_at_the_end_of_the_block_is_stopped(code, monkeypatch):
    wait = subprocess.Popen.wait
    short = {None: None, 20: 0.5}  # the patience with a stubborn one
    monkeypatch.setattr(subprocess.Popen, "wait", lambda p, timeout=None: wait(p, short[timeout]))
    with side_by_side(dict(waits=python(code))) as lines:
        pid = int(lines.get(timeout=60)[1])
        assert not has_ended(pid)
    assert has_ended(pid)


def test_ctrl_c_leaves_no_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        said = dict(process.stdout.readline().split() for _ in range(2))
        assert said.keys() == {"a", "b"} and not any(has_ended(pid) for pid in said.values())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert all(has_ended(pid) for pid in said.values())


def test_a_row_that_fails_stops_the_others_and_says_why(few_shapes, tmp_path, capsys):
    mean, full = ROWS["mean"], ROWS["full"] | dict(model_options=dict(captioner_layers=-1))
    base = SHARED | dict(batch_size=2, pretrained="", steps=10**6, checkpoint_every=1)
    study = Study(name="demo", base=base, rows=dict(mean=mean, full=full), seeds=(0,))
    place = Place(str(few_shapes), str(tmp_path / "results"), str(tmp_path / "runs"))
    begin = time.monotonic()
    run_rows(study, place, ["mean", "full"])
    assert time.monotonic() - begin < 600
    printed = capsys.readouterr().out
    assert "full: [1/1] demo/full-seed0: FAILED, see " in printed
    assert "captioner_layers must not be negative" in printed
    assert "full: failed (exit status 1); the others are stopped" in printed
    assert read_records(study, place.results_dir) == dict(mean=[], full=[])
