"""What an evaluation says of its checkpoint, what it refuses, and what its pictures show."""

import dataclasses
import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from conftest import small_model

from promptswitch_nb.annotations import DataError
from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.datasets import write_example
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import check_free
from promptswitch_nb.evaluate import drawable
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.evaluate import selection_rule
from promptswitch_nb.evaluate import show_retrieved
from promptswitch_nb.gallery import gallery_ranks
from promptswitch_nb.settings import ConfigError


def note(folder: Path, select_on: str, step: int | None, best: int | None, **config) -> None:
    """Write what training notes in a checkpoint."""
    record = dict(config=dict(select_on=select_on) | config, step=step, steps=8)
    record |= dict(best=best and dict(step=best, score=1.0))
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("select_on", "step", "best", "words"),
    [
        ("val", 4, 4, "best on the validation split"),
        ("official", 4, 4, "best on the TEST SET"),
        ("val", 8, 4, "the last one; nothing was looked at"),
        ("val", 6, 4, "that of step 6, where the run was then; nothing"),
        ("last", 8, 8, "the last one"),
        ("official", 4, None, "that of step 4"),
        ("val", None, 4, "not known, for its run.json"),
    ],
)
def test_a_checkpoint_says_how_it_was_chosen(select_on, step, best, words, tmp_path):
    note(tmp_path, select_on, step, best)
    assert words in selection_rule(tmp_path)


def test_an_average_is_the_best_and_what_a_run_goes_on_with_is_not(tmp_path):
    note(tmp_path, "val", 4, 4, ema=0.9)
    assert "best on the validation split" in selection_rule(tmp_path)
    (tmp_path / "state.pt").touch()
    assert "that of step 4" in selection_rule(tmp_path)


def test_a_checkpoint_without_a_record_is_not_guessed_at(tmp_path):
    assert selection_rule(tmp_path).startswith("not known, for there is no run.json")
    (tmp_path / "run.json").write_text('{"config": ')
    with pytest.raises(ConfigError, match="run.json is damaged"):
        selection_rule(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    """Make a small model and twelve videos of a moving square."""
    root = write_example("folder", tmp_path / "folder", n_videos=12)
    model = small_model().save(tmp_path / "model")
    return EvaluateConfig(
        str(model), "folder", str(root), results_dir=str(tmp_path / "results"), run="mine"
    )


def test_results_of_other_weights_and_other_settings_are_not_written_over(config, tmp_path):
    results, _ = evaluate(config)
    file = tmp_path / "results" / "mine.json"
    assert evaluate(config)[0]["metrics"] == results["metrics"]  # the same again: replaced
    written = file.read_text()
    stranger = small_model(cube_std=0.5).save(tmp_path / "stranger")
    with pytest.raises(ConfigError, match=r"another evaluation \(weights sha256:"):
        evaluate(dataclasses.replace(config, checkpoint=str(stranger)))
    seen = results["preprocess"]
    more = results | dict(preprocess=seen | dict(test_frames=2 * seen["test_frames"]))
    then, now = seen["test_frames"], 2 * seen["test_frames"]
    with pytest.raises(ConfigError, match=rf"\(test_frames {then}, now {now}\): move it away"):
        check_free(file, more)
    assert file.read_text() == written


def test_too_many_broken_videos_are_an_error_and_mended_ones_leave_no_list(config, tmp_path):
    paths = {
        pair.path: Path(pair.path).read_bytes()
        for pair in load_pairs("folder", config.data_root, "test")
    }
    for path in paths:
        Path(path).write_bytes(b"not a video")
    with pytest.raises(ValueError, match="more than the 1.0% allowed"):
        evaluate(config)
    listed, tolerant = (
        tmp_path / "results" / "mine-bad_videos.csv",
        dataclasses.replace(config, max_bad_share=1),
    )
    with pytest.raises(DataError) as caught:
        evaluate(tolerant)
    said = f"no video of {len(paths)} can be decoded: {listed} says why of each"
    assert said in str(caught.value)
    assert len(listed.read_text(encoding="utf-8").splitlines()) == 1 + len(paths)
    assert not (tmp_path / "results" / "mine.json").exists()
    for path, content in paths.items():
        Path(path).write_bytes(content)
    assert evaluate(tolerant)[0]["bad_videos"].startswith("0 of")
    assert not listed.exists()


def test_a_picture_shows_captions_as_they_are(config, tmp_path):
    _, encoded = evaluate(dataclasses.replace(config, split="train"))
    odd = ["from $5 \\frac_6 to $9^", "back\\slash_and {braces} % #", "half \udce9", "two\nlines"]
    texts = [*odd, *encoded.queries.texts[len(odd) :]]
    odd_ones = dataclasses.replace(encoded, queries=encoded.queries._replace(texts=texts))
    fig = show_retrieved(odd_ones, [0, 1, 2, 3], top=1, title="what $\\frac costs $9?")
    fig.savefig(tmp_path / "odd.png")
    plt.close(fig)
    shown = [ax.get_title(loc="left").partition("”")[0][1:] for ax in fig.axes]
    assert shown == [odd[0], odd[1], r"half \udce9", "two lines"]
    assert drawable("a" * 99) == "a" * 90 + "…"


def test_the_right_video_has_a_green_frame(config):
    _, encoded = evaluate(dataclasses.replace(config, split="train"))
    count, rank = len(encoded.videos), gallery_ranks(encoded)
    fig = show_retrieved(encoded, [0, 1, 2], top=count)
    colours = [ax.spines["left"].get_edgecolor() for ax in fig.axes]
    green = matplotlib.colors.to_rgba("tab:green")
    for row, place in enumerate(rank[:3].tolist()):
        here = [colour == green for colour in colours[row * count : (row + 1) * count]]
        assert here == [n + 1 == place for n in range(count)]
    plt.close(fig)
