"""Each setting of a training run arrives: the run's steps are those made by hand from it.

`CASES` changes one setting at a time. What no step can show has a test of its own, named in
`ELSEWHERE`. A new setting, or a new option of Prompt Switch, must be added to one of the two.
"""

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
import torch
from by_hand import Step
from by_hand import Triples
from by_hand import Weights
from by_hand import compare_by_hand
from by_hand import make_tree
from by_hand import metrics_by_hand
from by_hand import train_by_hand
from by_hand import triples
from by_hand import wrong_metrics
from conftest import small_model
from torch import Tensor
from torch.utils.data import DataLoader

from promptswitch_nb import preflight
from promptswitch_nb.caching import CacheConfig
from promptswitch_nb.caching import cache as make_store
from promptswitch_nb.clip import CLIPTowers
from promptswitch_nb.datasets import write_example
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.model import load_model
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.setup import build_model
from promptswitch_nb.steps import Stepper
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import step_plan
from promptswitch_nb.train import train

SIZES = dict(  # what is not about a preset: a run of moments
    clip="tiny",
    dataset="folder",
    pretrained="start",
    n_frames=4,
    test_frames=4,
    frames_per_chunk=2,
    batch_size=6,
    workers=0,
    select_on="last",
    evals_per_epoch=0,
    log_every=1,
    caption_samples=0,
    progress=False,
    device="cpu",
    threads=1,
)
PAPER = dict(  # settings and options of Prompt Switch, as the table of differences has them
    model="prompt_switch",
    fusion="mean",
    k=3,
    lam=0.5,
    caption_weights="tfidf",
    tfidf_floor=0.05,
    tfidf_end=0.1,
    caption_reduction="batch_sum",
    train_split="train",
    max_words=None,
    transform="whole_frame",
    flip=False,
    train_sampler="uniform",
    test_sampler="uniform",
    repeats="keep",
    accumulate=1,
    grad_cache=False,
    lr_clip=3e-5,
    lr_new=3e-5,
    optimizer="adamw",
    warmup=0.0,
    warmup_from_zero=False,
    weight_decay=0.0,
    clip_grad=0.0,
    max_logit_scale=0.0,
    ema=0.0,
    seed=0,
    switch=True,
    residual="switched",
    aggregate="prompts",
    aggregate_over="video",
    cube_std=0.02,
    cube_std_by_width=False,
    frame_norm="before_projection",
    captioner_reads="width",
    captioner_layers=3,
)
OFFICIAL = PAPER | dict(
    k=0,
    caption_weights="frequent",
    caption_reduction="token_mean",
    transform="crop",
    flip=True,
    train_sampler="official_random",
    test_sampler="official_uniform",
    repeats="drop",
    lr_clip=1e-6,
    lr_new=1e-5,
    optimizer="adamw_transformers",
    warmup=0.1,
    warmup_from_zero=True,
    weight_decay=0.2,
    clip_grad=1.0,
    max_logit_scale=100.0,
    residual="kept",
    aggregate_over="chunk",
    cube_std_by_width=True,
    frame_norm="after_projection",
    captioner_reads="joint",
    captioner_layers=2,
)
PLAIN = SIZES | PAPER | dict(k=2, steps=3, lr_clip=1e-3, lr_new=3e-3, captioner_layers=1)
SETTINGS = TrainConfig.names()
OPTIONS = [field.name for field in dataclasses.fields(PromptSwitch.Config)]
CASES = dict(  # setting, or option of Prompt Switch -> changes of PLAIN that must show in a step
    model=[
        dict(model="clip_mean", frame_norm="after_projection"),
        dict(fusion="top_k", best_frames=1),
    ],
    pretrained=[dict(pretrained="other_start")],
    k=[dict(k=1), dict(k=0)],
    lam=[dict(lam=0.1), dict(lam=0.0)],
    caption_weights=[dict(caption_weights="frequent"), dict(caption_weights="none")],
    tfidf_floor=[dict(tfidf_floor=0.6)],
    tfidf_end=[dict(tfidf_end=0.9)],
    caption_reduction=[dict(caption_reduction="token_mean")],
    model_options=[dict(captioner_layers=2, switch=False)],
    train_split=[dict(train_split="val")],
    n_frames=[dict(n_frames=2)],
    frames_per_chunk=[dict(frames_per_chunk=4)],
    max_words=[dict(max_words=6)],
    transform=[dict(transform="crop")],
    flip=[dict(transform="crop", flip=True)],
    train_sampler=[dict(train_sampler="random"), dict(train_sampler="official_random")],
    repeats=[dict(repeats="drop"), dict(repeats="defer")],
    batch_size=[dict(batch_size=4)],
    accumulate=[dict(accumulate=2)],
    grad_cache=[dict(accumulate=2, grad_cache=True)],
    epochs=[dict(steps=0, epochs=2)],
    steps=[dict(steps=2)],
    lr_clip=[dict(lr_clip=3e-3)],
    lr_new=[dict(lr_new=1e-3)],
    optimizer=[dict(optimizer="adamw_transformers", weight_decay=0.2)],
    warmup=[dict(warmup=0.7), dict(steps=0, epochs=2, warmup=0.5)],
    warmup_from_zero=[dict(warmup=0.7, warmup_from_zero=True)],
    weight_decay=[dict(weight_decay=0.2)],
    clip_grad=[dict(clip_grad=1.0)],
    max_logit_scale=[dict(max_logit_scale=10.0)],
    ema=[dict(ema=0.6)],
    seed=[dict(seed=1), dict(seed=1, transform="crop", train_sampler="random")],
    switch=[dict(switch=False)],
    residual=[dict(residual="kept")],
    aggregate=[dict(aggregate="none")],
    aggregate_over=[dict(aggregate_over="chunk")],
    cube_std=[dict(cube_std=0.5)],
    cube_std_by_width=[dict(cube_std=0.5, cube_std_by_width=True)],
    frame_norm=[dict(frame_norm="after_projection")],
    captioner_reads=[dict(captioner_reads="joint")],
    captioner_layers=[dict(captioner_layers=2), dict(captioner_layers=0)],
)
WITHOUT = dict(  # where a case changes two settings: the one that its name does not say
    flip=dict(transform="crop"),
    grad_cache=dict(accumulate=2),
    optimizer=dict(weight_decay=0.2),
    warmup_from_zero=dict(warmup=0.7),
    cube_std_by_width=dict(cube_std=0.5),
)


# A run, and the same by hand


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Make the data, and models to start from."""
    folder = tmp_path_factory.mktemp("tree")
    make_tree(folder / "data")
    model = small_model()
    model.save(folder / "start")
    model.clip.model.logit_scale.data.fill_(np.log(101))
    model.save(folder / "hot_start")
    for p in model.parameters():
        p.data.mul_(0.8)
    model.save(folder / "other_start")
    return folder


@pytest.fixture
def run(tree, tmp_path) -> Callable[..., Path]:
    """Return a function that trains with settings of `SIZES` and others: the folder of the run."""

    def run(**settings) -> Path:
        values = SIZES | dict(data_root=str(tree / "data"), output_dir=str(tmp_path / "run"))
        values |= settings
        return train(TrainConfig.from_dict(values | in_tree(tree, values)))

    return run


def in_tree(tree: Path, values: dict) -> dict:
    """Give the name of a model to start from its folder."""
    return dict(pretrained=str(tree / values["pretrained"]))


def as_config(s: dict) -> dict:
    """Write flat settings as a config has them: options of the model apart from the others."""
    values = {name: s[name] for name in SETTINGS if name in s}
    options = {name: s[name] for name in OPTIONS if name not in SETTINGS}
    if s["model"] == "clip_mean":
        options = {}
    if s["fusion"] == "top_k":
        values["model"] = dict(encoder=s["model"], fusion="top_k")
        options = dict(encoder=options, fusion=dict(k=s["best_frames"]))
    return values | dict(model_options=options)


def weights(folder: Path) -> Weights:
    """Read the weights of a checkpoint."""
    return load_model(folder).state_dict()


def first_weights(tree: Path, s: dict) -> Weights:
    """Make the weights before the first step: CLIP's from their file, the others at random."""
    others = dict(cube_std=1.0, cube_std_by_width=False, data_root="", output_dir="")
    values = as_config(s | others | dict(select_on="last")) | in_tree(tree, s)
    torch.manual_seed(s["seed"])
    w = dict(build_model(TrainConfig(**values), []).named_parameters())
    saved = weights(tree / s["pretrained"])
    w |= {name: p for name, p in saved.items() if name.startswith("clip.")}
    if "hook.cube.cube" in w:
        noise = w["hook.cube.cube"]
        assert noise.std().item() == pytest.approx(1, abs=0.25)
        scale = noise.shape[-1] ** -0.5 if s["cube_std_by_width"] else 1
        w["hook.cube.cube"] = noise * s["cube_std"] * scale
    if "captioner.output.weight" in w:
        w["captioner.output.weight"] = w["clip.model.token_embedding.weight"]
    return w


def without_key_bias(name: str, p: Tensor) -> Tensor:
    """Leave out what has no gradient but rounding: a bias of the keys of an attention."""
    return torch.cat([p.chunk(3)[0], p.chunk(3)[2]]) if name.endswith("in_proj_bias") else p


def far(ours: Weights, theirs: Weights, start: Weights, share: float = 0.02) -> list[str]:
    """Name the weights that are further from each other than a share of the way that they went."""
    if ours.keys() != theirs.keys():
        return sorted(ours.keys() ^ theirs.keys())
    names = []
    for name, p in theirs.items():
        if ours[name].shape != p.shape:
            return [name]
        difference, way = (
            without_key_bias(name, p - other).norm() for other in (ours[name], start[name])
        )
        if difference > share * way + 1e-6 * p.norm():
            names.append(name)
    return names


ROW = ("loss", "contrastive", "caption", "logit_scale", "grad_norm", "lr")


def unlike(ours: dict, theirs: dict, limit: float = 1e-3) -> dict[str, tuple[float, float]]:
    """Collect what two rows of a log say differently."""
    pairs = {name: (ours.get(name, 0), theirs.get(name, 0)) for name in ROW}
    return {name: (a, b) for name, (a, b) in pairs.items() if abs(a - b) > limit * abs(b) + 1e-9}


def check(folder: Path, steps: list[Step], start: Weights, *, best: int | None = None) -> None:
    """See that a run made these steps, and kept the weights of one of them, the last by default."""
    rows = [row for row in read_log(folder) if "loss" in row]
    assert len(rows) == len(steps)
    for row, step in zip(rows, steps):
        assert not unlike(row, step.row), row["step"]
    assert not far(weights(folder / "last"), steps[-1].weights, start)
    assert not far(weights(folder / "best"), steps[(best or len(steps)) - 1].kept, start)


def differ(steps: list[Step], others: list[Step], start: Weights) -> bool:
    """Tell whether two runs differ by much more than `check` lets pass."""
    if len(steps) != len(others):
        return True
    rows = any(unlike(a.row, b.row, 1e-2) for a, b in zip(steps, others))
    return rows or bool(far(steps[-1].kept, others[-1].kept, start, share=0.2))


@pytest.fixture(scope="module")
def by_hand(tree) -> Callable[[dict], tuple[list[Step], Weights]]:
    """Return a function that makes the steps of settings by hand, each once."""
    made = {}

    def by_hand(s: dict) -> tuple[list[Step], Weights]:
        key = json.dumps(s)
        if key not in made:
            start = first_weights(tree, s)
            made[key] = train_by_hand(s, start, triples(tree / "data", s["train_split"])), start
        return made[key]

    return by_hand


# Settings that show in a step


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, changes) for name, cases in CASES.items() for changes in cases],
    ids=str,
)
def test_a_setting_arrives_in_the_steps(name, changes, run, by_hand):
    s = PLAIN | changes
    steps, start = by_hand(s)
    others, _ = by_hand(PLAIN | WITHOUT.get(name, {}))
    assert differ(steps, others, start), "this case shows nothing"
    check(run(**as_config(s)), steps, start)


def test_an_option_of_the_model_wins_over_the_setting(run, by_hand):
    own = dict(k=1, lam=0.1, caption_reduction="token_mean", captioner_layers=1)
    steps, start = by_hand(PLAIN | own)
    check(run(**as_config(PLAIN) | dict(model_options=own)), steps, start)


# Evaluations in a run, and the same by hand


def evaluations(folder: Path) -> dict[int, dict]:
    """Read the rows of a log that hold metrics, by their step."""
    return {int(row["step"]): row for row in read_log(folder) if "Meta Sum" in row}


Compared = tuple[Tensor, list[int]]  # captions with videos, and the video of each caption


def compare_steps(steps: list[Step], s: dict, pairs: Triples) -> list[Compared]:
    """Compare captions and videos by what is kept of each step."""
    found = (compare_by_hand(step.kept, s, pairs) for step in steps)
    return [(sims, owners) for sims, _, owners in found]


def check_metrics(folder: Path, compared: list[Compared]) -> None:
    """See that the evaluations of a run found what is right of their step."""
    for step, row in evaluations(folder).items():
        assert not wrong_metrics(row, *compared[step - 1]), step


def best_step(rule: str, metrics: dict[int, dict]) -> int:
    """Choose a step as a rule says, of equals the first."""
    scores, recalls = {}, []
    for step, row in metrics.items():
        recalls.append(row["t2v/R@1"])
        window = recalls[-5:]
        mean = sum(window) / len(window)
        scores[step] = dict(last=step, val=row["Meta Sum"], official=mean)[rule]
    return max(scores, key=scores.get)


# Whole presets


@pytest.mark.parametrize("rates", [{}, dict(lr_clip=1e-3, lr_new=3e-3)], ids=["own", "fast"])
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_a_preset_arrives_whole(preset, rates, run, by_hand, tree):
    """Only sizes are given beside the name; at 1/τ = 101 the limit of 100 shows."""
    rule, split, every, table = dict(
        paper=("val", "val", 2, PAPER), official=("official", "test", 1, OFFICIAL)
    )[preset]
    own = ("select_on", "evals_per_epoch")
    sizes = {name: value for name, value in SIZES.items() if name not in own}
    sizes |= dict(steps=10, pretrained="hot_start") | rates
    steps, start = by_hand(table | sizes)
    folder = run(preset=preset, select_on=None, evals_per_epoch=None, **sizes)
    assert [*evaluations(folder)] == [*range(every, 11, every)]
    check_metrics(folder, compare_steps(steps, table | sizes, triples(tree / "data", split)))
    check(folder, steps, start, best=best_step(rule, evaluations(folder)))


# Settings of the data that no step of this tree can show


def example_pairs(root: Path, variant: str) -> Triples:
    """List the training pairs of a miniature of MSR-VTT, as its files have them."""
    with open(root / f"MSRVTT_train.{variant}.csv", newline="") as file:
        ids = [row["video_id"] for row in csv.DictReader(file)]
    sentences = json.loads((root / "MSRVTT_data.json").read_text())["sentences"]
    return [
        (video_id, str(root / "videos" / f"{video_id}.mp4"), sentence["caption"])
        for video_id in ids
        for sentence in sentences
        if sentence["video_id"] == video_id
    ]


@pytest.mark.parametrize(("variant", "count"), [("9k", 20), ("7k", 18)])
def test_the_dataset_and_its_variant_arrive(variant, count, run, tree, tmp_path):
    root = write_example("msrvtt", tmp_path / "msrvtt")
    pairs = example_pairs(root, variant)
    assert len(pairs) == count
    start, data = first_weights(tree, PLAIN), dict(dataset="msrvtt", data_root=str(root))
    folder = run(**as_config(PLAIN) | data | dict(variant=variant))
    check(folder, train_by_hand(PLAIN, start, pairs), start)


@pytest.mark.parametrize(("rule", "videos"), [("val", 8), ("last", 10), ("official", 10)])
def test_validation_videos_are_trained_on_unless_they_choose(rule, videos, run, tmp_path):
    """The list 9k of MSR-VTT holds the videos of val: with `select_on: val` they are left out."""
    root = write_example("msrvtt", tmp_path / "msrvtt")
    data = dict(dataset="msrvtt", data_root=str(root), batch_size=2, epochs=1)
    folder = run(**data, eval_every=100, select_on=rule)
    assert len([row for row in read_log(folder) if "loss" in row]) == videos  # 2 captions each


def test_the_shapes_are_never_mirrored_unless_asked(tmp_path):
    places = dict(data_root=str(tmp_path), output_dir=str(tmp_path))
    for flip, given in [(False, {}), (True, dict(flip=True))]:
        assert TrainConfig("official", dataset="shapes", **places, **given).flip == flip


@pytest.mark.parametrize(("name", "width"), [("ViT-S-32-alt", 384), ("tiny", 96)])
def test_the_name_of_clip_arrives(name, width, tree):
    places = dict(data_root="", output_dir="", pretrained="")
    model = build_model(TrainConfig(**SIZES | dict(clip=name) | places), ["a red ring"])
    assert model.clip.width == width


# Settings of the evaluations


@pytest.mark.parametrize(
    "changes",
    [
        dict(ema=0.8),
        dict(test_frames=2),
        dict(test_sampler="random"),
        dict(transform="crop"),
        dict(max_words=6),
        dict(test_sampler="official_uniform"),
        dict(select_on="official"),
    ],
    ids=str,
)
def test_a_setting_arrives_in_the_validation(changes, run, by_hand, tree):
    """What is ranked is what is kept, seen as in a test, and on the split that chooses."""
    s = PLAIN | dict(select_on="val", ema=0.0)
    splits = dict(val=triples(tree / "data", "val"), official=triples(tree / "data", "test"))
    expected, others = (
        compare_steps(by_hand(settings)[0], settings, splits[settings["select_on"]])
        for settings in (s | changes, s)
    )
    other = (wrong_metrics(metrics_by_hand(*b), *a) for a, b in zip(expected, others))
    assert any(other), "this case shows nothing"
    folder = run(**as_config(s | changes), eval_every=1)
    check_metrics(folder, expected)


@pytest.mark.parametrize("rule", ["val", "official", "last"])
def test_the_rule_chooses_the_checkpoint(rule, run, by_hand):
    s = PLAIN | dict(steps=8, select_on=rule)
    folder = run(**as_config(s), eval_every=1)
    best = best_step(rule, evaluations(folder))
    record = json.loads((folder / "best" / "run.json").read_text())
    assert record["best"]["step"] == best and record["select_on"] == rule
    check(folder, *by_hand(s), best=best)


def test_of_equals_the_first_is_the_best(run):
    folder = run(steps=3, eval_every=1, select_on="val", lr_clip=0, lr_new=0)
    assert json.loads((folder / "run.json").read_text())["best"]["step"] == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(eval_every=2, steps=5), [2, 4, 5]),
        (dict(evals_per_epoch=2, epochs=2, batch_size=4), [2, 4, 6, 8]),
        (dict(evals_per_epoch=1, epochs=1, batch_size=4), [4]),
        (dict(evals_per_epoch=2, eval_every=3, steps=3), [3]),
    ],
    ids=str,
)
def test_evaluations_come_when_the_settings_say(changes, expected, run):
    assert [*evaluations(run(**changes))] == expected


@pytest.mark.parametrize("count", [0, 3])
def test_as_many_captions_are_written_as_asked(count, run):
    folder = run(steps=2, eval_every=1, caption_samples=count)
    with open(folder / "captions.csv", newline="") as file:
        rows = [(int(row["step"]), row["video_id"]) for row in csv.DictReader(file)]
    videos = ["08.mp4", "09.mp4", "10.mp4"][:count]
    assert rows == [(step, video) for step in (1, 2) for video in videos]


# Settings around the steps


def stop_at(step: int) -> mock._patch:
    """Stop a run like a kill, when so many steps are done."""
    make = Stepper.step

    def step_or_stop(self, number, parts):
        if number == step:
            raise KeyboardInterrupt
        return make(self, number, parts)

    return mock.patch.object(Stepper, "step", step_or_stop)


@pytest.mark.parametrize(("every", "saved"), [(1, 5), (2, 4), (3, 3)])
def test_a_run_goes_on_from_its_last_checkpoint(every, saved, run, by_hand, tmp_path):
    """Stopped after five steps it has lost at most `checkpoint_every` - 1, and makes them anew."""
    s = PLAIN | dict(steps=7, ema=0.6, transform="crop", flip=True, checkpoint_every=every)
    with stop_at(5), pytest.raises(KeyboardInterrupt):
        run(**as_config(s))
    record = json.loads((tmp_path / "run" / "last" / "run.json").read_text())
    assert record["step"] == saved
    with pytest.raises(ConfigError, match="already holds a run"):
        run(**as_config(s), resume=False)
    folder = run(**as_config(s), resume=True)
    check(folder, *by_hand(s))


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5])])
def test_the_log_has_a_row_of_every_so_many_steps(every, expected, run):
    rows = read_log(run(steps=5, log_every=every))
    assert [row["step"] for row in rows] == expected


def test_a_cache_saves_the_second_reading(run, tmp_path):
    """In two epochs, the two captions of a video ask for it four times."""
    really, opened = av.open, {True: Counter(), False: Counter()}
    for cache, counts in opened.items():

        def count(path, *args, counts=counts, **options):
            counts[str(path)] += 1
            return really(path, *args, **options)

        with mock.patch("av.open", count):
            run(epochs=2, batch_size=4, cache=cache, output_dir=str(tmp_path / str(cache)))
    assert len(opened[True]) == 8
    assert opened[False] == {path: 4 * count for path, count in opened[True].items()}


def test_the_frames_come_from_the_store_that_is_named(run, tree, tmp_path):
    place, data = str(tmp_path / "frames"), str(tree / "data")
    pytest.importorskip("simplejpeg")
    make_store(CacheConfig(dataset="folder", root=data, out=place, frames=0, workers=0))
    with mock.patch("av.open", side_effect=AssertionError("a file was read")):
        folder = run(frame_store=place, cache=None, select_on="val", eval_every=1, steps=2)
    assert [*evaluations(folder)] == [1, 2]


def test_the_processes_that_decode_are_as_many_as_asked(run):
    asked, really = [], DataLoader.__init__

    def note(self, *args, num_workers=0, **options):
        asked.append(num_workers)
        alone = dict(num_workers=0, multiprocessing_context=None, persistent_workers=False)
        really(self, *args, **options | alone)

    with mock.patch.object(DataLoader, "__init__", note):
        run(steps=1, eval_every=1, workers=3)
    assert asked == [3, 3]  # training and evaluation


def test_the_share_of_bad_videos_is_the_setting(run, tmp_path):
    root = make_tree(tmp_path / "data")
    (root / "videos" / "03.mp4").write_bytes(b"no video")
    (root / "videos" / "12.mp4").write_bytes(b"no video")
    settings = dict(data_root=str(root), batch_size=16, steps=1, eval_every=1)
    with pytest.raises(ValueError, match="of 16 videos cannot be decoded, see bad_videos.csv"):
        run(**settings, max_bad_share=0.12)
    folder = run(**settings, max_bad_share=0.13, output_dir=str(tmp_path / "tolerant"))
    assert len((folder / "bad_videos.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("reads", ["width", "joint"])
def test_the_precision_arrives_in_the_step(reads, tree):
    """The command refuses half precision without a GPU; a step in bfloat16 is shown without it."""
    model, losses = small_model(captioner_reads=reads).train(), {}
    frames, ids = torch.randn(3, 2, 3, 16, 16), model.tokenize(["a ring", "the square", "red"])
    for precision in ("fp32", "bf16"):
        places = dict(data_root="", output_dir="", lr_clip=0, lr_new=0, k=0)
        config = TrainConfig(**SIZES | places, precision=precision)
        row = Stepper(model, step_plan(config, 1)).step(0, [(frames, ids)])
        losses[precision] = row["contrastive"], row["caption"]
    for half, full in zip(losses["bf16"], losses["fp32"]):
        assert half == pytest.approx(full, rel=0.1)
        assert half != pytest.approx(full, rel=1e-5)


@pytest.mark.parametrize("name", ["compile", "recompute"])
def test_how_blocks_are_run_arrives(name, run, tmp_path):
    """What the options do to a step, and that they change no number: `test_speed.py`."""
    asked = []
    note = mock.patch.object(CLIPTowers, "choose_speed", lambda self, **given: asked.append(given))
    with note:
        run(steps=1, **{name: True})
        run(steps=1, resume=False, output_dir=str(tmp_path / "plain"))
    assert asked == [dict(compile=False, recompute=False) | {name: True}]


def test_the_device_arrives(run):
    folder = run(steps=1, device="cpu")
    assert "CPU" in json.loads((folder / "run.json").read_text())["device"]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device is cuda, but PyTorch finds no GPU"):
            run(steps=1, device="cuda", resume=True)


def test_the_threads_arrive(run):
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            run(steps=1, threads=threads, resume=True)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_is_shown_if_asked(progress, run, capfd):
    run(steps=1, progress=progress)
    assert ("1/1" in capfd.readouterr().err) == progress


def test_the_folder_of_the_run_is_the_setting(run, tmp_path):
    folder = run(steps=1, output_dir=str(tmp_path / "elsewhere"))
    assert folder == tmp_path / "elsewhere" and not (tmp_path / "run").exists()
    assert {"config.json", "log.csv", "run.json", "last", "best"} <= {
        p.name for p in folder.iterdir()
    }


# Nothing is left out


def test_the_start_weights_are_ranked_if_asked(run, tree):
    """Before step 1, on the test split, and without a change of the steps."""
    known = preflight.ZeroShot(100, 100, 16, "made up")
    settings = as_config(PLAIN)
    with mock.patch.object(preflight, "published", lambda config: known):
        with pytest.warns(UserWarning, match="standard errors away"):
            folder = run(**settings)
        found = json.loads((folder / "preflight.json").read_text())
        losses = [row["loss"] for row in read_log(folder) if "loss" in row]
        again = run(**settings, preflight=False, output_dir=str(folder) + "-without")
    s = dict(model="clip_mean", frame_norm="after_projection", transform="crop", test_frames=12)
    start = first_weights(tree, PLAIN)
    sims, _, owners = compare_by_hand(start, PLAIN | s, triples(tree / "data", "test"))
    recall = metrics_by_hand(sims, owners)["t2v/R@1"]
    assert found["recall"] == pytest.approx(recall) and found["captions"] == 16
    assert not (again / "preflight.json").exists()
    assert losses == [row["loss"] for row in read_log(again) if "loss" in row]


ELSEWHERE = dict(  # setting -> the test that shows how it arrives
    preset=test_a_preset_arrives_whole,
    clip=test_the_name_of_clip_arrives,
    dataset=test_the_dataset_and_its_variant_arrive,
    variant=test_the_dataset_and_its_variant_arrive,
    data_root=test_the_dataset_and_its_variant_arrive,
    test_frames=test_a_setting_arrives_in_the_validation,
    test_sampler=test_a_setting_arrives_in_the_validation,
    cache=test_a_cache_saves_the_second_reading,
    frame_store=test_the_frames_come_from_the_store_that_is_named,
    workers=test_the_processes_that_decode_are_as_many_as_asked,
    max_bad_share=test_the_share_of_bad_videos_is_the_setting,
    precision=test_the_precision_arrives_in_the_step,
    compile=test_how_blocks_are_run_arrives,
    recompute=test_how_blocks_are_run_arrives,
    output_dir=test_the_folder_of_the_run_is_the_setting,
    resume=test_a_run_goes_on_from_its_last_checkpoint,
    select_on=test_the_rule_chooses_the_checkpoint,
    evals_per_epoch=test_evaluations_come_when_the_settings_say,
    eval_every=test_evaluations_come_when_the_settings_say,
    checkpoint_every=test_a_run_goes_on_from_its_last_checkpoint,
    log_every=test_the_log_has_a_row_of_every_so_many_steps,
    caption_samples=test_as_many_captions_are_written_as_asked,
    progress=test_the_bar_is_shown_if_asked,
    preflight=test_the_start_weights_are_ranked_if_asked,
    device=test_the_device_arrives,
    threads=test_the_threads_arrive,
)


def test_every_setting_and_option_has_its_test():
    assert not CASES.keys() & ELSEWHERE.keys()
    assert CASES.keys() | ELSEWHERE.keys() == {*SETTINGS, *OPTIONS}
    for name, cases in CASES.items():
        assert any(name in case for case in cases) or name in ("model", "model_options"), name
