"""What `make_shapes` refuses, and what of other people's it never deletes."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from promptswitch_nb.shapes import make_shapes
from promptswitch_nb.shapes import motion_pairs
from promptswitch_nb.shapes import paint

TINY = dict(n_train=2, n_val=0, n_test=0, n_compose=0, n_stills=0)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Make a set of two videos."""
    return make_shapes(tmp_path / "small", seed=4, **TINY)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (dict(n_test=10_000), "a test video needs a combination of its own"),
        (dict(n_frames=7), "n_frames even"),
        (dict(n_captions=40), "n_captions must be 1 to 12"),
    ],
)
def test_sizes_that_no_set_can_have(sizes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make_shapes(tmp_path / "new", **sizes)
    assert not (tmp_path / "new").exists()


def test_a_copy_beside_the_set_is_left_alone(made, tmp_path):
    (tmp_path / "small.old").mkdir()  # the name that someone may give to a copy
    make_shapes(made, seed=5, **TINY)
    assert (tmp_path / "small.old").exists()


def test_a_set_with_a_file_of_others_is_not_replaced(made):
    (made / "notes.txt").write_text("my notes")
    said = r"with seed 4; asked for is seed 5\), and make_shapes did not write its file notes.txt"
    with pytest.raises(FileExistsError, match=said):
        make_shapes(made, seed=5, **TINY)
    make_shapes(made, seed=4, **TINY)
    assert (made / "notes.txt").read_text() == "my notes"


def test_a_set_that_was_edited_is_not_replaced(made):
    captions = made / "captions_train.json"
    captions.write_text(captions.read_text().replace("square", "box"))
    os.utime(captions, (time.time() + 9,) * 2)
    with pytest.raises(FileExistsError, match="captions_train.json, or it was changed since"):
        make_shapes(made, seed=5, **TINY)


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else than moving shapes"):
        make_shapes(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(FileNotFoundError, match="make the set with make_shapes"):
        motion_pairs(tmp_path)


def test_a_shape_that_is_not_known():
    with pytest.raises(ValueError, match="unknown shape 'star'"):
        paint(np.zeros((64, 64, 3)), "star", "red", (9, 9), 3)
