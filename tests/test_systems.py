"""Any encoder goes with any fusion, and a stranger's system is used, by config alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.fusion import fusions
from promptswitch_nb.model import load_model
from promptswitch_nb.model import systems
from promptswitch_nb.shapes import make_shapes
from promptswitch_nb.system import ENCODERS
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

SIZES = dict(n_train=24, n_val=4, n_test=8, n_compose=0, n_stills=2)
SHORT = dict(preset="smoke", steps=10, eval_every=10, checkpoint_every=100, threads=1, device="cpu")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Make a small set of moving shapes."""
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data", **SIZES)


def train_and_evaluate(settings: dict, folder: Path, shapes: Path) -> dict:
    """Train ten steps and evaluate the checkpoint; return the results."""
    values = SHORT | dict(data_root=str(shapes), output_dir=str(folder / "run")) | settings
    run = train(TrainConfig.from_dict(values))
    losses = [row["loss"] for row in read_log(run) if "loss" in row]
    assert len(losses) == 10 and min(losses[5:]) < losses[0]
    checkpoint, results_dir = str(run / "best"), str(folder / "results")
    config = EvaluateConfig(checkpoint, "shapes", str(shapes), results_dir=results_dir)
    return evaluate(config)[0]


@pytest.mark.parametrize("fusion", fusions.names())
@pytest.mark.parametrize("encoder", ENCODERS.names())
def test_any_encoder_with_any_fusion(encoder, fusion, tmp_path, shapes):
    spec = dict(encoder=encoder, fusion=fusion)
    options = dict(encoder=dict(captioner_layers=1)) if encoder == "prompt_switch" else None
    results = train_and_evaluate(dict(model=spec, model_options=options), tmp_path, shapes)
    assert results["metrics"]["videos"] == 8 and "motion pairs" in results["metrics"]
    model = load_model(tmp_path / "run" / "best")
    assert fusions.name_of(type(model.fusion)) == fusion
    assert model.offline == (fusion == "mean")


@pytest.mark.parametrize("name", systems())
def test_every_system(name, tmp_path, shapes):
    results = train_and_evaluate(dict(model=name), tmp_path, shapes)
    assert 0 <= results["metrics"]["t2v/R@1"] <= 100


PACKAGE = '''
"""Another idea of a video: its brightest frame counts double."""
import torch
from torch import nn
from promptswitch_nb.model import VideoCLIP


class Brightest(VideoCLIP):
    """The brightest frame counts more, by a weight that is learned."""

    def __init__(self, clip, config=None, **parts):
        super().__init__(clip, config, **parts)
        self.weight = nn.Parameter(torch.ones(()))

    def frame_features(self, frames, mask):
        vectors = self.to_joint(self.frame_vectors(frames))
        light = frames.flatten(2).mean(2, keepdim=True)
        return vectors * (1 + self.weight * light.softmax(1)), mask

    def parameter_groups(self):
        return super().parameter_groups() | dict(light=[self.weight])


class Forgetful(Brightest):
    """A class that forgets its weight."""

    def parameter_groups(self):
        return VideoCLIP.parameter_groups(self)
'''
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "brightest"
version = "1.0"
[project.entry-points."promptswitch_nb.systems"]
brightest = "brightest:Brightest"
[tool.setuptools]
py-modules = ["brightest"]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Install a stranger's package into a folder."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "brightest.py").write_text(PACKAGE)
    (source / "pyproject.toml").write_text(PYPROJECT)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(site), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return site


def promptswitch(*arguments: object, site: Path) -> subprocess.CompletedProcess:
    """Run the command in a process that finds the package."""
    code = "import sys; from promptswitch_nb.cli import main; sys.exit(main(sys.argv[1:]))"
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=path),
    )


@pytest.mark.parametrize("name", ["brightest", "brightest:Brightest"])
def test_a_strangers_system(name, site, tmp_path, shapes):
    """It is trained, saved, and found again by its name or path; nothing is imported by hand."""
    run, config = tmp_path / "run", tmp_path / "run.yaml"
    data = dict(data_root=str(shapes), output_dir=str(run))
    config.write_text(yaml.safe_dump(SHORT | data | dict(model=name)))
    assert "brightest" in promptswitch("systems", site=site).stdout
    done = promptswitch("train", "--config", config, site=site)
    assert done.returncode == 0, done.stderr[-2000:]
    data = ["--dataset", "shapes", "--data-root", shapes, "--results-dir", tmp_path]
    done = promptswitch("evaluate", run / "best", *data, site=site)
    assert done.returncode == 0, done.stderr[-2000:]
    described = json.loads((run / "best" / "config.json").read_text())
    assert described["model"]["path"] == "brightest:Brightest"
    assert load_from(run / "best", site) == "Brightest"
    without = promptswitch("evaluate", run / "best", *data, site=tmp_path)
    assert without.returncode == 1 and "not installed: install it" in without.stderr


def load_from(folder: Path, site: Path) -> str:
    """Load a checkpoint in a fresh process; return the name of its class."""
    code = "import sys; from promptswitch_nb.model import load_model; "
    code += "print(type(load_model(sys.argv[1])).__name__)"
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(site), *filter(None, sys.path)]))
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=env).stdout.strip()


def test_a_parameter_in_no_group_is_an_error(site, tmp_path, shapes):
    config = tmp_path / "run.yaml"
    data = dict(data_root=str(shapes), output_dir=str(tmp_path / "run"))
    config.write_text(yaml.safe_dump(SHORT | data | dict(model="brightest:Forgetful")))
    done = promptswitch("train", "--config", config, site=site)
    assert done.returncode == 1 and "the parameter weight is in 0 of the groups" in done.stderr
