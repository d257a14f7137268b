"""Encoding in worker processes gives the rows that encoding in one process gives."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import small_model

from promptswitch_nb.encode import FileEnd
from promptswitch_nb.encode import encode_files
from promptswitch_nb.encode import events_of
from promptswitch_nb.encode import find_videos
from promptswitch_nb.encode import unpack_features
from promptswitch_nb.video import write_video
from promptswitch_nb.windows import Windowing

SECOND = Windowing(seconds=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write five videos of 1 to 5 seconds, one with an odd name, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = (
            rng.integers(0, 255, (1, 32, 32, 3))
            * np.linspace(0.5, 1, 12 * (i + 1))[:, None, None, None]
        )
        write_video(folder / f"{i}.mp4", pixels.astype(np.uint8))
    os.rename(folder / "4.mp4", os.path.join(os.fsencode(folder), b"caf\xe9 #4%\n.mp4"))
    (folder / "text.mp4").write_text("no video")
    return folder


def encoded(folder: Path, *, workers: int = 0, batch_size: int = 4, model=None):
    """Encode a folder; return its rows by id, and the ends."""
    model = model or small_model()
    events = events_of(find_videos(folder), model.preprocess, SECOND, workers=workers)
    steps = list(encode_files(model, events, batch_size=batch_size))
    rows = pa.concat_tables([step.rows for step in steps if step.rows is not None])
    return rows.sort_by("id"), [end for step in steps for end in step.ends]


def test_workers_change_nothing(folder):
    """Two processes that decode give the same rows as none."""
    rows, ends = encoded(folder)
    others, other_ends = encoded(folder, workers=2)
    assert rows["id"].to_pylist() == others["id"].to_pylist()
    assert len(rows) == 1 + 3 + 5 + 7 + 9
    ours, theirs = (np.stack(t["vector"].to_numpy(zero_copy_only=False)) for t in (rows, others))
    assert np.abs(ours - theirs).max() < 1e-5
    assert sorted(e.path for e in ends) == sorted(e.path for e in other_ends)
    assert rows["thumbnail"].to_pylist() == others["thumbnail"].to_pylist()


def test_ends_tell_of_files(folder):
    """Each file ends once, with its length, its shots, and the reason if it has no windows."""
    _, ends = encoded(folder)
    assert len(ends) == len({end.path for end in ends}) == 6
    (bad,) = [end for end in ends if end.reason]
    assert bad.path.endswith(b"text.mp4")
    assert bad.windows == 0
    for end in ends:
        if end is not bad:
            assert end.duration == pytest.approx(end.shots[-1])
            assert end.windows == round(2 * end.duration) - 1


def test_all_features_are_kept_where_ranking_needs_them(folder):
    """A system that is not offline keeps its features, whatever is asked for."""
    for fusion, is_empty in [("mean", True), ("xpool", False)]:
        model = small_model(fusion=fusion).eval()
        events = events_of(find_videos(folder / "0.mp4"), model.preprocess, SECOND)
        (step,) = encode_files(model, events, frame_vectors=False)
        assert (step.rows["features"].to_pylist() == [b""]) == is_empty
        if not is_empty:
            features = unpack_features(step.rows["features"].to_pylist())
            features["pooled"] = torch.tensor(step.rows["vector"].to_pylist())
            text = model.text_features(model.tokenize(["a red square"]))
            assert model.similarity(text, features).isfinite().all()


def test_a_file_that_vanishes_is_an_end_with_a_reason(folder, tmp_path):
    """A file that is gone by the time it is read is told of, and stops nothing."""
    paths = [os.fsencode(tmp_path / "gone.mp4"), *find_videos(folder / "0.mp4")]
    gone, *others = events_of(paths, small_model().preprocess, SECOND)
    assert isinstance(gone, FileEnd)
    assert "No such file" in gone.reason
    assert others[-1].windows == 1
