"""Each study in configs/studies can be run as it stands; only its data may be missing."""

import json
from pathlib import Path

import pytest

from promptswitch_nb.settings import read_yaml
from promptswitch_nb.studies import Place
from promptswitch_nb.studies import check_study
from promptswitch_nb.studies import find_record
from promptswitch_nb.studies import planned_runs
from promptswitch_nb.studies import read_records
from promptswitch_nb.studies import read_study
from promptswitch_nb.system import systems

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "configs" / "studies"
FILES = sorted(path for path in STUDIES.glob("*.yaml") if path.stem != "shapes_base")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_has_a_config(path, tmp_path):
    """Every row is read with its seed, its start and its evaluations."""
    study = read_study(path)
    assert study.name == path.stem and len(planned_runs(study)) == 3 * len(study.rows)
    check_study(study, Place(str(tmp_path), str(tmp_path)))
    dataset = path.stem.partition("_")[0]
    assert {run.settings["dataset"] for run in planned_runs(study)} == {dataset}
    assert (study.start is not None) == (dataset == "shapes")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_differ_in_what_the_model_is(path):
    """No two rows are the same run, and the rows of moving shapes share rates and budget."""
    runs = [run for run in planned_runs(read_study(path)) if run.seed == 0]
    assert len({json.dumps(run.settings, sort_keys=True) for run in runs}) == len(runs)
    if path.stem.startswith("shapes"):
        for name in ("steps", "batch_size", "lr_clip", "lr_new", "warmup", "weight_decay"):
            assert len({run.settings[name] for run in runs}) == 1, name


@pytest.mark.parametrize("dataset", ["shapes", "msrvtt"])
def test_every_system_has_a_row(dataset):
    """What is registered is compared."""
    named = set()
    for path in FILES:
        if path.stem.startswith(dataset):
            for run in planned_runs(read_study(path)):
                model = run.settings.get("model", "prompt_switch")
                named.add(model if isinstance(model, str) else None)
    # The first is clip_mean; the second takes image models that have no tiny form of their own.
    assert {*systems()} - named <= {"clip4clip_mean", "open_clip_mean"}


def test_the_start_is_the_config_of_stills():
    study = read_study(STUDIES / "shapes_table1.yaml")
    stills = read_yaml(ROOT / "configs/shapes_stills.yaml")
    start = planned_runs(study)[0].start
    for name in stills.keys() - {"data_root", "output_dir"}:
        assert start[name] == stills[name], name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_records_are_of_the_studies_settings(path):
    """A record that was made with other settings is an error, and each names its commit."""
    study = read_study(path)
    found = read_records(study, ROOT / "results")
    records = [record for records in found.values() for record in records]
    files = list((ROOT / "results" / study.name).glob("*.json"))
    assert len(files) == len(records)  # none lies there that the study does not know
    for run in planned_runs(study):
        record = find_record(run, ROOT / "results")
        if record:
            assert record["training"]["commit"] and record["training"]["device"]
            assert record["evaluations"].keys() == (study.evaluations or {"test": 0}).keys()
