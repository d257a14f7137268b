"""What each setting of a training run does, and what is refused."""

import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import yaml
from conftest import torchrun
from torch import Tensor

from promptswitch_nb import gallery
from promptswitch_nb.command import Meter
from promptswitch_nb.datasets import GalleryDataset
from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.gallery import encode_split
from promptswitch_nb.gallery import gallery_metrics
from promptswitch_nb.model import load_model
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.settings import read_arguments
from promptswitch_nb.setup import build_model
from promptswitch_nb.steps import Stepper
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import Trainer
from promptswitch_nb.train import main
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

TEST_DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")


def run(settings: dict, **changes) -> Path:
    """Train with changed settings."""
    return train(TrainConfig.from_dict(settings | changes))


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    """Read the weights of a checkpoint."""
    return load_model(Path(folder, name)).state_dict()


def equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Tell whether weights are equal to the last bit."""
    return all(torch.equal(some[name], others[name]) for name in others)


def test_another_seed_gives_other_weights(small_run, tmp_path):
    folders = [run(small_run, seed=seed, output_dir=str(tmp_path / str(seed))) for seed in (0, 1)]
    assert not equal(*map(weights, folders))


def test_the_moving_average_is_what_is_kept(small_run):
    folder = run(small_run, ema=0.9, select_on="last")
    average = torch.load(folder / "last" / "state.pt", weights_only=True)["ema"]
    best, last = weights(folder, "best"), weights(folder, "last")
    assert equal(best, {name: average[f"module.{name}"] for name in best})
    assert not equal(best, last)


def test_a_folder_holds_one_run(small_run):
    run(small_run, ema=0.9)
    with pytest.raises(ConfigError, match="already holds a run: write resume: true"):
        run(small_run, ema=0.9)
    with pytest.raises(ConfigError, match=r"has ema: 0.9, the config now says 0.5"):
        run(small_run, ema=0.5, resume=True)


def test_what_does_not_fit_is_refused(small_run, monkeypatch):
    with pytest.raises(ConfigError, match="n_frames is 3: it must be a multiple of frames_per_chu"):
        run(small_run, n_frames=3)
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU: write precision: fp32"):
        run(small_run, precision="fp16")
    monkeypatch.setattr(gallery, "has_bf16", lambda: False)
    with pytest.raises(ConfigError, match="precision bf16 needs a GPU, or a CPU with AVX512_BF16"):
        run(small_run, precision="bf16")


def test_a_processor_with_instructions_trains_in_bf16(small_run, monkeypatch, tmp_path):
    monkeypatch.setattr(gallery, "has_bf16", lambda: True)
    half = run(small_run, precision="bf16", output_dir=str(tmp_path / "half"))
    full = run(small_run, output_dir=str(tmp_path / "full"))
    losses = [read_log(folder)[0]["loss"] for folder in (half, full)]
    assert losses[0] == pytest.approx(losses[1], abs=0.1)
    assert losses[0] != losses[1]


def test_official_says_that_it_looks_at_the_test_set(small_run, capsys):
    changes = dict(preset="official", k=0, select_on="official", steps=2)
    folder = run(small_run, model_options=None, **changes)
    assert "test set (select_on: official)" in capsys.readouterr().out
    record = json.loads((folder / "best" / "run.json").read_text())
    assert record["select_on"] == "official" and record["config"]["repeats"] == "drop"


def test_videos_that_cannot_be_decoded_are_counted(small_run, tmp_path):
    videos = sorted((tmp_path / "data" / "videos").iterdir())
    videos[0].write_bytes(b"no video")
    message = "1 of 10 videos cannot be decoded, see bad_videos.csv, more than the 1.0% allowed"
    with pytest.raises(ValueError, match=message):
        run(small_run, output_dir=str(tmp_path / "strict"))
    folder = run(small_run, output_dir=str(tmp_path / "tolerant"), max_bad_share=0.2)
    record = json.loads((folder / "run.json").read_text())
    assert record["bad_videos"] == "1 of 10 videos cannot be decoded, see bad_videos.csv"
    assert len((folder / "bad_videos.csv").read_text().splitlines()) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="half precision needs a GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_like_full(small_run, tmp_path, precision):
    settings = small_run | dict(device="cuda", steps=3)
    half = run(settings, precision=precision, output_dir=str(tmp_path / "half"))
    full = run(settings, output_dir=str(tmp_path / "full"))
    losses = [read_log(folder)[0]["loss"] for folder in (half, full)]
    assert losses[0] == pytest.approx(losses[1], abs=0.1)


@pytest.fixture
def trainer(small_run) -> Trainer:
    """Return a trainer that cuts its batches into two parts."""
    config = TrainConfig.from_dict(small_run | dict(accumulate=2, k=0))
    trainer = Trainer(config, torch.device("cpu"))
    trainer.model.train()
    yield trainer
    trainer.log.close()


def test_the_gradient_of_parts_is_the_mean_of_their_gradients(trainer):
    batch, model = next(trainer.batches()), trainer.model
    with mock.patch.object(Stepper, "update", lambda self, number, row: row):
        terms = trainer.train_step(batch)
    ids = model.tokenize(batch["captions"])
    losses = []
    for part in (slice(0, 2), slice(2, 4)):
        text, video = model.text_features(ids[part]), model.video_features(batch["frames"][part])
        losses.append(model.losses(text, video, ids[part])["loss"])
    gradients = torch.autograd.grad(sum(losses) / 2, [*model.parameters()])
    assert terms["loss"] == pytest.approx(sum(losses).item() / 2, abs=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_no_number_stops_before_the_weights(trainer):
    batch, model = next(trainer.batches()), trainer.model.clip.model
    before = model.visual.proj.detach().clone()
    model.logit_scale.data.fill_(math.nan)
    message = r"step 1: the loss is not finite \(loss nan, contrastive nan, caption "
    with pytest.raises(FloatingPointError, match=message):
        trainer.train_step(batch)
    assert torch.equal(before, model.visual.proj)


def test_stills_can_be_what_a_model_starts_from(small_run, tmp_path):
    changes = dict(model="clip_mean", model_options=None, n_frames=1, test_frames=1)
    changes |= dict(select_on="last", evals_per_epoch=0, eval_every=0)
    folder = run(small_run, **changes, output_dir=str(tmp_path / "stills"))
    settings = small_run | dict(pretrained=str(folder / "best"))
    adapted = build_model(TrainConfig.from_dict(settings), [])
    assert equal(load_model(folder / "best").clip.state_dict(), adapted.clip.state_dict())


def test_the_command_line_reads_what_yaml_reads(small_run, tmp_path):
    argv = ["--data-root", small_run["data_root"], "--output_dir", "x", "--lr_new", "2e-4"]
    argv += ["--model_options", "{captioner_layers: 1}", "--pretrained", ""]
    file = tmp_path / "run.yaml"
    file.write_text("preset: smoke\ndataset: folder\nsteps: 3\n")
    argv = ["--config", str(file), *argv, "--resume", "true"]
    config = read_arguments(TrainConfig, argv, prog="promptswitch train")
    assert (config.lr_new, config.resume, config.steps, config.pretrained) == (2e-4, True, 3, "")
    assert config.model_options == dict(captioner_layers=1)
    with pytest.raises(SystemExit, match="there is no setting 'lr_nw': did you mean lr_new"):
        main([*argv, "--lr_nw=1"])
    with pytest.raises(SystemExit, match="promptswitch train: lr_new is 'fast': input should be a"):
        main([*argv, "--lr_new", "fast"])


@pytest.mark.skipif(not TEST_DATA, reason="needs real clips")
def test_real_clips_can_be_learned_by_heart(tmp_path):
    """A model that cannot even fit a handful of videos has a fault somewhere."""
    clips = Path(TEST_DATA, "data", "clips").absolute()
    manifest = json.loads((clips / "manifest.json").read_text())
    captioned = [clip for clip in manifest if clip["captions"]]
    root = tmp_path / "real"
    (root / "videos").mkdir(parents=True)
    for clip in captioned:
        (root / "videos" / clip["file"]).symlink_to(clips / clip["file"])
    rows = [dict(video=c["file"], captions=c["captions"], split="train") for c in captioned]
    (root / "captions.json").write_text(json.dumps(rows))
    settings = dict(
        preset="paper",
        clip="tiny",
        pretrained="",
        dataset="folder",
        data_root=str(root),
        output_dir=str(tmp_path / "run"),
        select_on="last",
        evals_per_epoch=0,
        steps=150,
        batch_size=len(captioned),
        cache=True,
        workers=0,
        lr_clip=1e-3,
        lr_new=2e-3,
        warmup=0.1,
        clip_grad=1.0,
        test_frames=6,
        model_options=dict(captioner_layers=1),
    )
    model = load_model(run(settings) / "last")
    pairs = load_pairs("folder", root, "train")
    metrics = gallery_metrics(encode_split(model, GalleryDataset(pairs, model.preprocess)))
    assert metrics["videos"] == len(captioned)
    assert (metrics["t2v/R@1"], metrics["v2t/R@1"]) == (100, 100)


def test_two_processes_train_like_one(small_run, tmp_path):
    settings = small_run | dict(pretrained=str(tmp_path / "start"), k=0, steps=4, eval_every=2)
    one = run(settings, output_dir=str(tmp_path / "one"))
    config, two = tmp_path / "two.yaml", tmp_path / "two"
    config.write_text(yaml.safe_dump(settings | dict(output_dir=str(two))))
    output = torchrun("-m", "promptswitch_nb.train", "--config", config)
    assert output.count("validation:") == 2
    rows = [[row for row in read_log(folder) if "loss" in row] for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 4
    for ours, theirs in zip(*rows):
        for name in ("loss", "contrastive", "caption", "grad_norm", "logit_scale"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}


def test_without_a_terminal_a_run_says_how_far_it_is(small_run, monkeypatch, capsys):
    monkeypatch.setattr(Meter, "EVERY", 0.0)
    run(small_run, steps=3, log_every=1, eval_every=3, progress=None)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("training: ")]
    numbers = r"loss \d+\.\d{3}, lr \d\.\de-\d\d, [\d.,]+ steps/s, 0:00:\d\d left"
    for n, line in enumerate(told, 1):
        assert re.fullmatch(rf"training: {n} of 3 steps, {numbers}", line), line
    assert len(told) == 3
    assert any(line.startswith("encoding: ") for line in lines)  # the evaluation


@pytest.mark.parametrize("number", [0, 1])
def test_one_process_of_several_says_how_far_they_are(number, monkeypatch):
    monkeypatch.setattr("promptswitch_nb.train.rank", lambda: number)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    config, progress = SimpleNamespace(progress=None), SimpleNamespace(step=1)
    with Trainer.meter(SimpleNamespace(config=config, steps=3, progress=progress)) as meter:
        assert meter.has_lines == (number == 0)
        assert bool(meter.bar.disable) == (number != 0)


def test_a_run_that_is_told_to_be_silent_is(small_run, monkeypatch, capsys):
    monkeypatch.setattr(Meter, "EVERY", 0.0)
    run(small_run, steps=2, eval_every=1, progress=False)
    assert "training: " not in (out := capsys.readouterr().out) and "encoding: " not in out
