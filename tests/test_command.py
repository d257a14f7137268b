"""What a command says, and with which status it ends, when something goes wrong."""

import dataclasses
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import NO_NEWS
from conftest import small_model

from promptswitch_nb import cli
from promptswitch_nb import demo
from promptswitch_nb import evaluate as evaluation
from promptswitch_nb import reproduce as reproduction
from promptswitch_nb import studies
from promptswitch_nb import train as training
from promptswitch_nb.command import Meter
from promptswitch_nb.data_check import check_data
from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.evaluate import read_checkpoint
from promptswitch_nb.evaluate import run_name
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.shapes import make_shapes
from promptswitch_nb.train import TrainConfig

if sys.platform == "linux":
    import fcntl
    import termios

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and signals")


def start(module: str, *arguments: object, stdout=subprocess.PIPE, **environment: str):
    """Start a module as a command; Ctrl-C reaches it even where the tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", f"promptswitch_nb.{module}", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for a command; return its status and what it printed."""
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, (out or b"").decode("utf-8"), err.decode("utf-8")


def as_options(settings: dict) -> list[str]:
    """Write settings as options of a command."""
    return [f"--{name}={json.dumps(value)}".replace('"', "") for name, value in settings.items()]


@pytest.fixture
def start_model(small_run) -> EvaluateConfig:
    """Return an evaluation of the model that a small run would start from."""
    data, folder = small_run["data_root"], Path(small_run["pretrained"]).parent
    return EvaluateConfig(
        str(folder / "start"), "folder", data, split="train", results_dir=str(folder / "results")
    )


# Streams


@linux_only
def test_the_command_prints_on_any_terminal(start_model):
    c = start_model
    options = ["--dataset=folder", f"--data-root={c.data_root}", f"--results-dir={c.results_dir}"]
    name = os.fsdecode(b"--run=caf\xe9")  # a name that is no UTF-8
    ascii = dict(PYTHONIOENCODING="ascii") | NO_NEWS
    code, out, err = ended(
        start("evaluate", c.checkpoint, *options, "--split=train", name, **ascii)
    )
    assert (code, err) == (0, "")
    assert r"\xb1 standard error" in out and r"caf\udce9: 8 of 8 videos" in out
    assert r"\u2192 text" in out
    strict = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") | NO_NEWS
    code, out, err = ended(start("evaluate", c.checkpoint, *options, "--split=train", **strict))
    assert (code, err, r"\xb1 standard error" in out) == (0, "", True)
    code, out, err = ended(start("train", "--help", **strict))
    assert (code, err, r"\u03bb of Eq. 6" in out) == (0, "", True)


@linux_only
def test_python_m_is_the_command_and_its_output_may_break(tmp_path):
    windows = dict(PYTHONIOENCODING="cp1252") | NO_NEWS
    code, out, err = ended(start("cli", "train", "--help", **windows))
    assert (code, err, r"\u03bb of Eq. 6" in out) == (0, "", True)
    reader, writer = os.pipe()
    process = start("cli", "systems", stdout=writer, **NO_NEWS)
    os.close(writer)
    os.close(reader)
    assert ended(process) == (141, "", "")
    with open("/dev/full", "w") as full:
        code, _, err = ended(start("cli", "systems", stdout=full, **NO_NEWS))
    assert code == 1
    assert err.startswith("promptswitch: the disk is full ([Errno 28] No space left on device)")
    assert len(err.splitlines()) == 1


# How each command ends

GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."
ENDS = {
    "number": (FloatingPointError("step 3: the loss is not finite: lower lr"), 1, "not finite"),
    "disk": (OSError(28, "No space left on device", "x"), 1, "make room, and run again."),
    "weights": (RuntimeError("[enforce fail at x:1] . unexpected pos 4 vs 3"), 1, "disk is full"),
    "rights": (PermissionError(13, "Permission denied", "x"), 1, "x: Permission denied: allow it"),
    "gpu": (torch.cuda.OutOfMemoryError(GPU), 1, "2.00 GiB: lower batch_size, or, in training,"),
    "stop": (KeyboardInterrupt(), 130, "stopped."),
}
COMMANDS = {
    "train": training,
    "evaluate": evaluation,
    "demo": demo,
    "study": studies,
    "reproduce": reproduction,
}
WORK = {"demo": "run_demo", "study": "run_study"}  # where it is not called as the command
AGAIN = dict.fromkeys(["demo", "study", "reproduce"], "The same command goes on where")
AGAIN["train"] = "Go on with --resume: the run is in"


def broken(monkeypatch, command: str, error: BaseException) -> None:
    """Let the work of a command end with an error."""

    def work(*arguments, **options):
        raise error

    monkeypatch.setattr(COMMANDS[command], WORK.get(command, command), work)


@pytest.fixture
def arguments(small_run, start_model) -> dict[str, list[str]]:
    """Return arguments for each command."""
    of_evaluate = dataclasses.asdict(start_model)
    checkpoint = of_evaluate.pop("checkpoint")
    given = {name: value for name, value in of_evaluate.items() if value}
    table = Path(__file__).parents[1] / "configs" / "studies" / "shapes_table1.yaml"
    return dict(
        train=as_options(small_run),
        evaluate=[checkpoint, *as_options(given)],
        demo=["--seed=3"],
        study=[str(table)],
        reproduce=["folder", f"--data-root={small_run['data_root']}"],
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", ENDS)
def test_a_command_ends_with_a_sentence(command, case, arguments, monkeypatch, capsys):
    error, status, words = ENDS[case]
    broken(monkeypatch, command, error)
    assert cli.main([command, *arguments[command]]) == status
    with pytest.raises(SystemExit) as end:
        COMMANDS[command].main(arguments[command])
    assert end.value.code == status
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and first.startswith(f"promptswitch {command}: ")
    assert words in first
    assert case != "stop" or AGAIN.get(command, "") in first


@pytest.mark.parametrize("command", COMMANDS)
def test_a_fault_of_the_program_keeps_its_traceback(command, arguments, monkeypatch):
    for error in (TypeError("a"), KeyError("a"), RuntimeError("a"), ValueError("a")):
        broken(monkeypatch, command, error)
        with pytest.raises(type(error), match="a"):
            cli.main([command, *arguments[command]])


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_words_too_many_are_named(command, capsys):
    named = ("check-data", "cache", "evaluate", "study", "reproduce")
    named += ("index", "search", "export", "encode")
    first = ["msvd"] if command in named else []
    assert cli.main([command, *first, "one", "--zebra=1", "two"]) == 2
    message = capsys.readouterr().err
    assert "unrecognized arguments: one two; there is no setting 'zebra'" in message
    assert cli.main([command, *first, "--", "foo"]) == 2


def test_a_config_with_a_fault_is_one_sentence(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 3\nseed: 1\nsteps: 4\n")
    assert cli.main(["train", "--config", str(file)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "run.yaml cannot be read (steps stands twice)" in line
    assert cli.main(["train", "--model_options", "{a: [}", "--output_dir=x"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "'{a: [}' is no YAML (line 1, column 6: " in line


def test_an_error_in_a_decoding_process_is_one_sentence(small_run, capsys):
    for pair in load_pairs("folder", small_run["data_root"], "train"):
        Path(pair.path).write_bytes(b"not a video")
    with pytest.raises(SystemExit):
        training.main(as_options(small_run | dict(workers=1, max_bad_share=1)))
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("promptswitch train: ") and "cannot be decoded" in line
    assert "Traceback" not in line and "Caught" not in line


@linux_only
def test_ctrl_c_says_how_to_go_on(small_run):
    settings = small_run | dict(steps=100_000, log_every=100)
    process = start("train", *as_options(settings))
    last = Path(settings["output_dir"], "last")
    for _ in range(1000):
        if last.exists():
            break
        assert process.poll() is None, ended(process)
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert (code, "Traceback" in err) == (130, False), err
    where = f"Go on with --resume: the run is in {settings['output_dir']}."
    assert err.splitlines()[-1] == f"promptswitch train: stopped. {where}"


# Results


def test_results_of_two_evaluations_have_two_names(start_model):
    c = start_model
    usual, _ = evaluate(c)
    other, _ = evaluate(dataclasses.replace(c, n_frames=6))
    mine, _ = evaluate(dataclasses.replace(c, n_frames=6, run="mine"))
    again, _ = evaluate(dataclasses.replace(c, batch_size=3))
    names = sorted(path.name for path in Path(c.results_dir).iterdir())
    assert names.pop(0) == "mine-6frames.json" and mine["metrics"] == other["metrics"]
    assert names == [f"{run_name(c)}-6frames.json", f"{run_name(c)}.json"]
    assert (usual["preprocess"]["test_frames"], other["preprocess"]["test_frames"]) == (4, 6)
    assert usual["metrics"] == pytest.approx(again["metrics"])
    files = [json.loads((Path(c.results_dir) / name).read_text()) for name in names]
    assert [file["metrics"] for file in files] == [other["metrics"], again["metrics"]]


@pytest.mark.parametrize("change", ["weights", "data_root", "split", "view", "damaged"])
def test_results_of_another_evaluation_stay(change, start_model, tmp_path, monkeypatch):
    c = dataclasses.replace(start_model, run="mine")
    evaluate(c)
    file = Path(c.results_dir, "mine.json")
    if change == "weights":
        model = small_model()
        model.clip.model.logit_scale.data += 1
        model.save(c.checkpoint)
    elif change == "data_root":
        copy = shutil.copytree(c.data_root, tmp_path / "copy")
        c = dataclasses.replace(c, data_root=str(copy))
    elif change == "damaged":
        file.write_text("{")
    elif change == "split":
        c = dataclasses.replace(c, split="test")
    else:  # the same weights, which now see otherwise
        description = json.loads(Path(c.checkpoint, "config.json").read_text())
        description["preprocess"]["transform"] = "crop"
        Path(c.checkpoint, "config.json").write_text(json.dumps(description))
    before = file.read_bytes()
    refused = "mine.json holds the results of another evaluation"
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=refused):
        patch.setattr(evaluation, "encode_split", None)  # nothing is computed before
        evaluate(c)
    assert file.read_bytes() == before
    assert [path.name for path in Path(c.results_dir).iterdir()] == ["mine.json"]


def test_results_that_come_while_others_are_computed_stay(start_model, monkeypatch):
    file, real = Path(start_model.results_dir, "mine.json"), evaluation.gallery_metrics

    def gallery_metrics(*arguments, **options):
        file.parent.mkdir()
        file.write_text('{"by": "another"}')
        return real(*arguments, **options)

    monkeypatch.setattr(evaluation, "gallery_metrics", gallery_metrics)
    with pytest.raises(ConfigError, match="mine.json holds the results of another evaluation"):
        evaluate(dataclasses.replace(start_model, run="mine"))
    assert file.read_text() == '{"by": "another"}'


def test_what_is_said_of_a_checkpoint_is_what_training_noted(small_run, start_model):
    settings = small_run | dict(steps=5, eval_every=3, seed=1)
    folder = training.train(TrainConfig.from_dict(settings))
    steps = [json.loads((folder / n / "run.json").read_text())["step"] for n in ("best", "last")]
    assert steps == [3, 5]
    copies = folder.parent / "copies"
    for name, of in (("best", "last"), ("last", "best")):
        shutil.copytree(folder / of, copies / name)
    shutil.copytree(folder / "best", copies / "nameless")
    (copies / "nameless" / "run.json").unlink()

    def chosen(path):
        place = str(path.parent / f"results-{path.name}")
        config = dataclasses.replace(start_model, checkpoint=str(path), results_dir=place)
        return evaluate(config)[0]["chosen"]

    assert "best on the validation split" in chosen(folder / "best")
    assert chosen(copies / "last") == chosen(folder / "best")
    assert "the last one; nothing was looked at" in chosen(copies / "best")
    assert chosen(copies / "best") == chosen(folder / "last")
    assert chosen(copies / "nameless").startswith("not known")


def replaced_while_read(monkeypatch, replace) -> None:
    """Let training replace the checkpoint after its weights were read, before all else is."""
    real = evaluation.load_model

    def load_model(*arguments, **options):
        model = real(*arguments, **options)
        replace()
        return model

    monkeypatch.setattr(evaluation, "load_model", load_model)


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_that_is_replaced_while_it_is_read(links, tmp_path, monkeypatch):
    best, store = tmp_path / "best", tmp_path / "checkpoints"
    small_model().save(store / "best-1")
    small_model().save(store / "best-2")
    for name in ("best-1", "best-2"):
        (store / name / "run.json").write_text(json.dumps(dict(name=name)))
    if links:
        best.symlink_to(store / "best-1")
    else:
        (store / "best-1").rename(best)

    def replace():
        if links:
            best.unlink()
            best.symlink_to(store / "best-2")
            shutil.rmtree(store / "best-1")
        else:
            shutil.rmtree(best)
            (store / "best-2").rename(best)

    with monkeypatch.context() as patch:
        replaced_while_read(patch, replace)
        with pytest.raises(ConfigError, match="best was replaced while it was read.*: run again"):
            read_checkpoint(best)
    assert read_checkpoint(best).record == dict(name="best-2")


def test_a_link_that_moves_on_changes_nothing_that_is_read(tmp_path, monkeypatch):
    best = tmp_path / "best"
    for name in ("1", "2"):
        small_model().save(tmp_path / name)
        (tmp_path / name / "run.json").write_text(json.dumps(dict(name=name)))
    best.symlink_to(tmp_path / "1")

    def move_on():
        best.unlink()
        best.symlink_to(tmp_path / "2")

    replaced_while_read(monkeypatch, move_on)
    assert read_checkpoint(best).record == dict(name="1")


def test_the_same_pythons_are_named_everywhere():
    root = Path(__file__).resolve().parent.parent
    setup, workflow, readme = (
        (root / name).read_text(encoding="utf-8")
        for name in ("setup.py", ".github/workflows/test.yaml", "README.md")
    )
    pythons = re.findall(r"\d\.\d+", re.search(r"PYTHONS = (.*)", setup)[1])
    assert pythons[-1] == "3.13"
    assert re.findall(r"\d\.\d+", re.search(r"python: \[(.*)\]", workflow)[1]) == pythons
    assert f"needs Python {', '.join(pythons[:-1])} or {pythons[-1]}" in readme


def test_a_split_without_motion_has_no_motion_pairs(tmp_path):
    root = make_shapes(tmp_path / "shapes", n_train=2, n_val=2, n_test=2, n_compose=0, n_stills=4)
    small_model().save(tmp_path / "model")
    config = EvaluateConfig(str(tmp_path / "model"), "shapes", str(root), split="stills")
    results, _ = evaluate(dataclasses.replace(config, results_dir=str(tmp_path / "results")))
    assert not any("motion" in name for name in results["metrics"])


# How far a long work is

WALK = """
from promptswitch_nb.command import Meter
Meter.EVERY = 0
with Meter("walking", 3, "mile", shown=%s) as meter:
    for _ in range(3):
        meter.add(note="sunny")
"""
LINES = [f"walking: {n} of 3 miles, sunny, " for n in (1, 2, 3)]


def walked(shown: bool | None, **streams: int) -> tuple[str, str]:
    """Work in a process of its own; return what it prints to streams that are no terminals."""
    command = [sys.executable, "-c", WALK % shown]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | streams
    done = subprocess.run(command, check=True, **streams)
    return (done.stdout or b"").decode(), (done.stderr or b"").decode()


def on_terminal(work) -> str:
    """Call `work` with a terminal; return what that shows."""
    ours, theirs = os.openpty()
    size = struct.pack("HHHH", 24, 80, 0, 0)  # rows, columns
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    try:
        work(theirs)
        os.set_blocking(ours, False)
        return os.read(ours, 10_000).decode()
    except BlockingIOError:
        return ""
    finally:
        os.close(theirs)
        os.close(ours)


def test_without_a_terminal_work_prints_lines_and_no_bar():
    out, err = walked(None)
    assert err == ""
    assert [line[: len(LINES[0])] for line in out.splitlines()] == LINES
    assert all(re.search(r", [\d,.]+ miles/s, 0:00:\d\d left$", line) for line in out.splitlines())


@linux_only
def test_a_terminal_gets_a_bar_and_a_file_beside_it_the_lines():
    shown = on_terminal(lambda terminal: walked(None, stdout=terminal, stderr=terminal))
    assert "3/3" in shown and LINES[0] not in shown
    printed = []
    shown = on_terminal(lambda terminal: printed.extend(walked(None, stderr=terminal)))
    assert "3/3" in shown  # `make demo > log`
    assert printed[0].count("walking:") == 3


@linux_only
def test_a_bar_or_nothing_may_be_asked_for():
    out, err = walked(True)
    assert out == "" and "3/3" in err
    assert walked(False) == ("", "")
    assert on_terminal(lambda terminal: walked(False, stdout=terminal, stderr=terminal)) == ""


def test_lines_come_by_the_clock(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Meter("walking", 100, "mile") as meter:
        for _ in range(100):
            now[0] += 1
            meter.add()
    told = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    every = round(Meter.EVERY)
    assert told == [f"walking: {n} of 100 miles" for n in range(every, 101, every)]
    assert 10 <= Meter.EVERY <= 30


def test_the_long_works_say_how_far_they_are(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Meter, "EVERY", 0.0)
    sizes = dict(n_train=2, n_val=2, n_test=3, n_compose=0, n_stills=4)
    root = make_shapes(tmp_path / "shapes", **sizes)
    assert "drawing: 11 of 11 videos" in capsys.readouterr().out
    assert check_data("shapes", root).ok
    assert "decoding: 11 of 11 videos" in capsys.readouterr().out
    small_model().save(tmp_path / "model")
    config = EvaluateConfig(str(tmp_path / "model"), "shapes", str(root), batch_size=2)
    evaluate(dataclasses.replace(config, results_dir=str(tmp_path / "results")))
    out = capsys.readouterr().out
    assert "encoding: 2 of 3 videos" in out and "encoding: 3 of 3 videos" in out
