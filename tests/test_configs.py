"""Each file in configs/ is a config under both presets; only its data may be missing."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import small_settings

from promptswitch_nb.config import EvaluateConfig
from promptswitch_nb.formats import FORMATS
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.model import load_model
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.settings import read_yaml
from promptswitch_nb.setup import training_pairs
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

FOLDER = Path(__file__).resolve().parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
TABLE_1 = sorted((FOLDER / "table1").glob("*.yaml"))


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, preset):
    values = read_yaml(path)
    config = TrainConfig(**values | dict(preset=preset))
    assert values["preset"] == "paper"
    assert config.preset == preset and config.dataset == path.stem.partition("_")[0]


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "lsmdc"])
def test_the_papers_datasets_have_the_papers_settings(name):
    c = TrainConfig(**read_yaml(next(path for path in CONFIGS if path.stem == name)))
    assert (c.clip, c.n_frames, c.test_frames, c.k) == ("ViT-B-32-quickgelu", 6, 12, 3)
    assert (c.lam, c.epochs, c.batch_size) == (0.5, 10, 128)
    assert (c.lr_clip, c.lr_new) == (3e-5, 3e-5)


D_TABLE = {  # setting: its value in the paper, in the released code; as the index's table has them
    "lr_clip": (3e-5, 1e-6),  # D5
    "lr_new": (3e-5, 1e-5),
    "warmup": (0, 0.1),  # D6
    "weight_decay": (0, 0.2),
    "clip_grad": (0, 1),
    "max_logit_scale": (0, 100),
    "batch_size": (128, 32),  # D10
    "epochs": (10, 5),
    "k": (3, 0),
    "caption_reduction": ("batch_sum", "token_mean"),  # D11
    "caption_weights": ("tfidf", "frequent"),  # D12
    "transform": ("whole_frame", "crop"),  # D14
    "flip": (False, True),
    "train_sampler": ("uniform", "official_random"),  # D15
    "test_sampler": ("uniform", "official_uniform"),
    "repeats": ("keep", "drop"),  # D16
    "select_on": ("val", "official"),  # D17
    "evals_per_epoch": (1, 10),
    "optimizer": ("adamw", "adamw_transformers"),  # D20
    "warmup_from_zero": (False, True),
}
D_OPTIONS = {
    "residual": ("switched", "kept"),  # D1
    "aggregate_over": ("video", "chunk"),  # D2
    "cube_std_by_width": (False, True),  # D3
    "frame_norm": ("before_projection", "after_projection"),  # D7
    "captioner_reads": ("width", "joint"),  # D8
    "captioner_layers": (3, 2),  # D10
}


@pytest.mark.parametrize("column, preset", [(0, "paper"), (1, "official")])
def test_a_preset_is_a_column_of_the_table(column, preset):
    own = dict(preset=preset, dataset="msvd", data_root="x", output_dir="x")
    config = TrainConfig(**own)
    for name, values in D_TABLE.items():
        assert getattr(config, name) == values[column], name
    for name, values in D_OPTIONS.items():
        assert getattr(PromptSwitch.PRESETS[preset], name) == values[column], name


@pytest.mark.parametrize("path", TABLE_1, ids=lambda path: path.stem)
def test_a_row_of_table_1_builds_and_learns_as_it_says(path, small_run):
    """Of the config, only the sizes are changed: what the row is about stays."""
    values = read_yaml(path)
    about = {key: values[key] for key in ("model", "model_options", "lam") if key in values}
    settings = {k: v for k, v in small_run.items() if k not in ("model_options", "preset")}
    config = TrainConfig.from_dict(settings | dict(preset="paper", evals_per_epoch=0) | about)
    model = load_model(train(config) / "best")
    groups = set(model.parameter_groups()) - {"clip"}
    expected = {
        "mean": set(),
        "switch": {"cube"},
        "switch_temporal": {"cube", "temporal"},
        "switch_aggregation": {"cube", "aggregation"},
        "full": {"cube", "aggregation", "captioner"},
        "cube_without_switch": {"cube", "aggregation"},
    }
    assert groups == expected[path.stem]
    assert path.stem == "mean" or (path.stem == "cube_without_switch") != model.config.switch


@pytest.mark.parametrize(
    "difference",
    [
        dict(model_options=dict(residual="kept")),  # D1
        dict(model_options=dict(aggregate_over="chunk")),  # D2
        dict(model_options=dict(cube_std_by_width=True)),  # D3
        dict(lr_clip=1e-6, lr_new=1e-5),  # D5
        dict(warmup=0.5),  # D6
        dict(weight_decay=0.2),  # D6
        dict(clip_grad=1e-3),  # D6
        dict(max_logit_scale=10.0),  # D6
        dict(model_options=dict(frame_norm="after_projection")),  # D7
        dict(model_options=dict(captioner_reads="joint")),  # D8
        dict(model_options=dict(captioner_layers=2), k=0),  # D10
        dict(caption_reduction="token_mean"),  # D11
        dict(caption_weights="frequent"),  # D12
        dict(tfidf_floor=0.0, tfidf_end=0.0),  # D12, to the letter
        dict(transform="crop", flip=True),  # D14
        dict(train_sampler="official_random", test_sampler="official_uniform"),  # D15
        dict(repeats="drop"),  # D16
        dict(warmup=0.5, warmup_from_zero=True),  # D20
        dict(optimizer="adamw_transformers"),  # D20
    ],
    ids=str,
)
def test_one_difference_at_a_time_changes_a_run(difference, plain_run, tmp_path):
    """Each row of the table of differences is a setting of its own, and it is obeyed."""
    settings, losses = plain_run
    options = settings["model_options"] | difference.get("model_options", {})
    changes = difference | dict(model_options=options, output_dir=str(tmp_path / "run"))
    folder = train(TrainConfig.from_dict(settings | changes))
    changed = np.abs(np.divide(losses_of(folder), losses) - 1).max()
    assert changed > 1e-5  # more than rounding makes of the same run
    record = json.loads((folder / "best" / "run.json").read_text())
    for name, value in difference.items():
        assert name == "model_options" or record["config"][name] == value


def losses_of(folder: Path) -> list[float]:
    """Read the losses of a run."""
    return [row["loss"] for row in read_log(folder) if "loss" in row]


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> tuple[dict, list[float]]:
    """Train the preset without any difference, twice; return its settings and its losses."""
    folder = tmp_path_factory.mktemp("plain")
    plain = dict(preset="paper", n_frames=4, test_frames=4, steps=4, eval_every=4, batch_size=8)
    plain["k"] = 2  # of one frame, a mean is the frame, and D7 makes no difference
    settings = small_settings(folder) | plain
    runs = []
    for name in ("one", "two"):
        config = TrainConfig.from_dict(settings | dict(output_dir=str(folder / name)))
        runs.append(losses_of(train(config)))
    np.testing.assert_allclose(runs[0], runs[1], rtol=2e-6)
    return settings, runs[0]


STRANGE = FORMATS["folder"]._replace(mirrors=False)  # as another package would have it


def test_a_dataset_of_another_package_is_named_by_its_import_path(small_run):
    settings = small_run | dict(preset="official", model_options=None)
    known = TrainConfig.from_dict(settings)
    strange = TrainConfig.from_dict(settings | dict(dataset="test_configs:STRANGE"))
    assert known.flip is True and strange.flip is False
    assert training_pairs(strange) == training_pairs(known)
    with pytest.raises(ConfigError, match=r"choose one of msrvtt.*no attribute 'STRANGER'"):
        TrainConfig.from_dict(settings | dict(dataset="test_configs:STRANGER"))


WRONG = {
    "there is no setting 'lr_clop': did you mean lr_clip": dict(lr_clop=1),
    "batch_size is 'eight': input should be a valid integer": dict(batch_size="eight"),
    "there is no setting 'zebra': the settings are": dict(zebra=0),
    "preset is 'papper': input should be 'paper', 'official' or 'smoke'": dict(preset="papper"),
    "preset is ['paper']: input should be 'paper'": dict(preset=["paper"]),
    "repeats is 'skip': input should be 'keep', 'drop' or 'defer'": dict(repeats="skip"),
    "batch_size is 1: input should be greater than or equal to 2": dict(batch_size=1),
    "accumulate is 99 for a batch_size of 128: a part of one pair": dict(accumulate=99),
    "grad_cache joins the parts of a batch, and accumulate is 1": dict(grad_cache=True),
    "seed is True: input should not be true or false": dict(seed=True),
    "resume is 'perhaps': input should be a valid boolean": dict(resume="perhaps"),
    "ema is 1.5: input should be less than 1": dict(ema=1.5),
    "output_dir has no value": dict(output_dir=None),
    "dataset has no value": dict(dataset=None),
    "dataset is 'msdv': choose one of msrvtt, msvd": dict(dataset="msdv"),
    "data_root no/where is no folder: set it to the folder of msvd": dict(data_root="no/where"),
    "pretrained no/where.pt does not exist": dict(pretrained="no/where.pt"),
    "there are no evaluations": dict(evals_per_epoch=0),
    "unknown model 'prompt_swich'; did you mean prompt_switch?": dict(model="prompt_swich"),
    "unknown fusion 'topk'": dict(model=dict(encoder="prompt_switch", fusion="topk")),
    "write a name, or {encoder: NAME, fusion: NAME}": dict(model=dict(encoder="prompt_switch")),
    "train_sampler is 'best': input should be 'uniform', 'random'": dict(train_sampler="best"),
}
WRONG_EVALUATION = {
    "there is no setting 'check_point': did you mean checkpoint": dict(check_point="x"),
    "dataset has no value": dict(dataset=None),
    "checkpoint='nowhere' is not a folder": dict(checkpoint="nowhere"),
    "batch_size is 0: input should be": dict(batch_size=0),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_setting_of_a_run_is_named(words, tmp_path):
    good = dict(dataset="msvd", data_root=str(tmp_path), output_dir=str(tmp_path / "run"))
    TrainConfig.from_dict(good)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(good | WRONG[words])
    assert words in str(caught.value)


@pytest.mark.parametrize("words", WRONG_EVALUATION)
def test_a_wrong_setting_of_an_evaluation_is_named(words):
    good = dict(checkpoint=".", dataset="shapes", data_root=".")
    EvaluateConfig.from_dict(good)
    values = {k: v for k, v in (good | WRONG_EVALUATION[words]).items() if v is not None}
    with pytest.raises(ConfigError) as caught:
        EvaluateConfig.from_dict(values)
    assert words in str(caught.value)
