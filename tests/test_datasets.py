"""What is asked for wrongly of a dataset, and what is damaged in its files, is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from promptswitch_nb.annotations import DataError
from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.datasets import write_example
from promptswitch_nb.formats import find_format
from promptswitch_nb.formats import get_format


def refused(words: str, act: Callable, *args, **options) -> None:
    """See that a call is refused with these words."""
    with pytest.raises((DataError, ValueError)) as caught:
        act(*args, **options)
    assert words in str(caught.value)


LSMDC = "LSMDC16_annos_training.csv"
NET = ("activitynet", "train.json")
BAD_SPAN = "must have [start, end] in seconds"
VIDEO99 = ('"video0",\n   "sen_id": 1', '"video99",\n   "sen_id": 1')
OF_TEXT = '"sentences": [', '"sentences": "A cat.", "others": ['
SPANS, BAD_TIME = '"timestamps": [', "0.7"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "words"),
    [
        ("msrvtt", "MSRVTT_train.9k.csv", None, "video77\n", "no caption of video77"),
        ("msrvtt", "MSRVTT_train.9k.csv", None, "video0\n", "names video0 twice"),
        ("msrvtt", "MSRVTT_data.json", '"sentences"', '"sentence"', "has no 'sentences': add it"),
        ("msrvtt", "MSRVTT_data.json", *VIDEO99, "of video99, which is not in its list"),
        ("msvd", "test_list.txt", "-4wsuPCj11_5_15\n", "", "-4wsuPCj11_5_15, which is in none"),
        ("lsmdc", LSMDC, "\t", " ", "line 1: 5 columns where LSMDC has 6"),
        (*NET, "v_QOlSCBRm0", "v_new", "v_new, which is not in train_ids.json"),
        (*NET, *OF_TEXT, "'sentences' is the text 'A cat.' and must be a list"),
        (*NET, BAD_TIME, '"1"', BAD_SPAN),
        (*NET, BAD_TIME, "null", BAD_SPAN),
        (*NET, BAD_TIME, "0.7, 1", BAD_SPAN),
        (*NET, SPANS, f"{SPANS}[0, 1], ", BAD_SPAN),
        (*NET, SPANS, f"{SPANS}0.5, ", BAD_SPAN),
    ],
)
def test_a_damaged_file(name, file, old, new, words, tmp_path: Path):
    root = write_example(name, tmp_path / name, videos=False)
    text = (root / file).read_text()
    (root / file).write_text(text + new if old is None else text.replace(old, new, 1))
    refused(words, load_pairs, name, root, "train")


@pytest.fixture(scope="module")
def msvd(tmp_path_factory) -> Path:
    """Write the annotation files of MSVD."""
    return write_example("msvd", tmp_path_factory.mktemp("msvd") / "root", videos=False)


@pytest.mark.parametrize(
    ("name", "split", "variant", "words"),
    [
        ("msrvt", "train", None, "unknown dataset 'msrvt'; did you mean msrvtt"),
        ("msvd", "dev", None, "unknown split 'dev'"),
        ("lsmdc", "train", None, "LSMDC16_annos_training.csv is not in"),
        ("msvd", "train", "9k", "msvd has no variant '9k'"),
        ("msrvtt", "train", "8k", "it must be '9k' or '7k' or 'full'"),
    ],
)
def test_what_is_not_there(name, split, variant, words, msvd):
    refused(words, load_pairs, name, msvd, split, variant=variant)


def test_a_folder_that_is_not_there_and_a_split_that_a_folder_lacks(tmp_path):
    refused("no/where is no folder", load_pairs, "msvd", "no/where", "train")
    refused("no/where is no folder", find_format, "msvd", "no/where", None)
    root = write_example("folder", tmp_path / "folder", videos=False)
    refused("no split 'dev', only train, val, test", load_pairs, "folder", root, "dev")
    (root / "captions.json").write_text('{"a": []}')
    refused("caption is empty", load_pairs, "folder", root, "train")


def test_a_split_without_captions(tmp_path):
    root = write_example("activitynet", tmp_path / "root", videos=False)
    (root / "val_ids.json").write_text("[]")
    (root / "val_1.json").write_text("{}")
    refused("have no captions for test", load_pairs, "activitynet", root, "test")


def test_a_path_that_leads_to_no_format():
    refused("it must lead to a Format", get_format, "os:path")
