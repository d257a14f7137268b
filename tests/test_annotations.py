"""What is wrong with an annotation file is named, with the file and the entry."""

import gzip
import json
from pathlib import Path

import pytest

from promptswitch_nb.annotations import DataError
from promptswitch_nb.annotations import captions_of
from promptswitch_nb.annotations import clean_caption
from promptswitch_nb.annotations import entry_of
from promptswitch_nb.annotations import folder_splits
from promptswitch_nb.annotations import read_json
from promptswitch_nb.annotations import read_table
from promptswitch_nb.annotations import read_text
from promptswitch_nb.annotations import unique_ids


def refused(words: str, act, *args) -> None:
    """See that a call is refused with these words."""
    with pytest.raises(DataError) as caught:
        act(*args)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2], "a.json is a list of 2 and must be an object: mend it"),
        (None, "a.json is null and must be an object"),
        ({"video": []}, "a.json has no 'videos': add it"),
        ({"videos": 42}, "a.json, 'videos' is the number 42 and must be a list"),
        ({"videos": "x"}, "a.json, 'videos' is the text 'x' and must be a list"),
    ],
)
def test_json_of_another_kind(value, words):
    refused(words, entry_of, value, "videos", list, "a.json")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "a.json is not valid JSON"),
        ("b.json", '{"x": 1, "x": 2}', "b.json: the key 'x' occurs twice"),
        ("b.json", '[{"a": 1, "a": 2}]', "'a' occurs twice"),
        ("c.csv", "video,caption\n1,a, b\n", "c.csv, line 2: the number of columns differs"),
        ("d.csv", "caption\na\n", "no column 'video'"),
        ("f.csv", 'video,caption\n1,a\n2,"b\n3,c\n4,d"\n', "the line '3,c' stands inside it"),
    ],
)
def test_a_damaged_file(name, text, words, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    if name.endswith(".json"):
        refused(words, read_json, file)
    else:
        refused(words, read_table, file, "video")


def test_a_quote_that_is_not_doubled(tmp_path):
    file = tmp_path / "e.csv"
    file.write_text('video,caption\n1,a\n2,"a man says "hi" again"\n')
    for words in ("e.csv, line 3: ", "; close every quote, and double those inside a caption"):
        refused(words, read_table, file, "video")


def test_a_packed_file_that_breaks_off(tmp_path):
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"words" * 99)[:20])
    refused("d.txt.gz cannot be read", read_text, tmp_path / "d.txt.gz")


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        (" \n", "captions.csv, line 3: the caption is empty"),
        ([], "the caption is empty: write one, or take the entry out"),
        (42, "the caption is the number 42, not a sentence"),
        (None, "the caption is null, not a sentence"),
        (["a cat", "a dog"], "the caption is a list of 2, not a sentence"),
        ([["a", "cat"]], "the caption is a list of 1, not a sentence"),
        ("\ud83d smile", "holds half of a character"),
    ],
)
def test_a_caption_that_is_none(caption, words):
    refused(words, clean_caption, caption, "captions.csv, line 3")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../cat.mp4", "a.json, [0]: the name '../cat.mp4' leads out of the folder"),
        ("b/../../cat.mp4", "leads out of the folder: name a file below"),
        ("..\\cat.mp4", "leads out of the folder"),
        ("C:\\cat.mp4", "is a drive or an address"),
        ("\\\\server\\cat.mp4", "is a drive or an address"),
        ("http://a.org/cat.mp4", "is a drive or an address"),
        ("file:cat.mp4", "is a drive or an address"),
        ("cat\0.mp4", "holds NUL or half of a character"),
        (" ", "the name of the video is the text ' '"),
        (7, "the name of the video is the number 7"),
    ],
)
def test_a_name_that_leads_elsewhere(name, words):
    refused(words, unique_ids, [name], "a.json")


def test_a_list_that_names_a_video_twice():
    refused("train_list.txt names a twice", unique_ids, ["a", "b", "a"], "train_list.txt")


def test_an_id_without_captions():
    captions = {"v1": ["one"], "v3": []}
    refused(
        "all.json has no caption of v3: take v3 out",
        captions_of,
        ["v1", "v3"],
        captions,
        "all.json",
    )
    words = "all.json, v1, caption 2: the caption is the number 2"
    refused(words, captions_of, ["v1"], {"v1": ["one", 2]}, "all.json")


HALF_SPLIT = [dict(video="a", caption="x", split="train"), dict(video="b", caption="y")]


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ("no column 'caption'", {"captions.csv": "video,text\na,b\n"}),
        ("caption is empty", {"captions.json": {"a": []}}),
        ("holds no captions", {"captions.json": {}}),
        ("for all or for none", {"captions.json": HALF_SPLIT}),
        ("captions.json, [0] has neither 'caption'", {"captions.json": [dict(video="a")]}),
        ("captions.json, [0] has no 'video'", {"captions.json": [dict(caption="a")]}),
        ("'split' is the number 2", {"captions.json": [dict(video="a", caption="x", split=2)]}),
        ("captions.json is the number 3", {"captions.json": 3}),
        ("the name of the video is", {"captions.json": [dict(video=" ", caption="x")]}),
        ("captions.csv, line 2: the name", {"captions.csv": "video,caption\n../a,b\n"}),
        (
            "captions.csv, line 3: the caption is empty",
            {"captions.csv": "video,caption\na,b\na,\n"},
        ),
        ("has no captions.json", {"captions.txt": "x"}),
        (
            "keep one file for all splits",
            {"captions.json": {"a": "x"}, "captions_test.json": {"b": "y"}},
        ),
    ],
)
def test_a_folder_whose_captions_are_wrong(words, files, tmp_path: Path):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    refused(words, folder_splits, tmp_path)
