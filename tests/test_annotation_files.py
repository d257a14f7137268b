"""What users' annotation files look like: odd, damaged and hostile ones are read right or named."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest

from promptswitch_nb.annotations import DataError
from promptswitch_nb.annotations import folder_splits
from promptswitch_nb.annotations import read_json
from promptswitch_nb.annotations import read_table
from promptswitch_nb.annotations import read_text
from promptswitch_nb.data_check import check_data
from promptswitch_nb.datasets import FORMATS
from promptswitch_nb.datasets import Pair
from promptswitch_nb.datasets import dataset_names
from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.datasets import write_example
from promptswitch_nb.files import write_csv
from promptswitch_nb.files import write_json
from promptswitch_nb.files import write_text
from promptswitch_nb.samples import BadVideos
from promptswitch_nb.shapes import motion_pairs

NAMES = dataset_names(with_example=True)
LATIN = os.fsdecode("café.mp4".encode("latin-1"))
CLIP_FILES = "clip_id_to_file.json"


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory) -> dict[str, Path]:
    """Write the annotation files of each dataset once."""
    folder = tmp_path_factory.mktemp("miniatures")
    roots = {name: write_example(name, folder / name, videos=False) for name in NAMES}
    clips = [pair.video_id for pair in load_pairs("lsmdc", roots["lsmdc"], "train")]
    write_json(roots["lsmdc"] / CLIP_FILES, {clip: f"{clip}.avi" for clip in clips})
    return roots


@pytest.fixture
def tree(miniatures, tmp_path):
    """Give a function that copies the miniature of a dataset."""

    def copy(name: str) -> Path:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        return shutil.copytree(miniatures[name], tmp_path / name)

    return copy


def every_split(name: str):
    """Name all that `load_pairs` can be asked for."""
    form = FORMATS[name]
    return [(split, v) for v in form.variants for split in form.splits or ("train", "val", "test")]


def load_all(name: str, root: Path) -> list[str]:
    """Load each split: it gives pairs of texts, or a DataError; return the errors."""
    errors = []
    for split, variant in every_split(name):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pairs = load_pairs(name, root, split, variant=variant)
        except DataError as error:
            errors.append(str(error))
        else:
            assert pairs and all(isinstance(pair, Pair) for pair in pairs)
            assert all(isinstance(text, str) and text.strip() for pair in pairs for text in pair)
    report = check_data(name, root, decode=False).table()
    report.encode("utf-8")
    return errors


def write_folder(root: Path, text: str | bytes, name: str = "captions.csv") -> Path:
    """Write a captions file."""
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return root / name


# --- CSV ------------------------------------------------------------------------------------------

RIGHT = [dict(video="a.mp4", caption="a cat, again"), dict(video="b.mp4", caption='"hi" é')]
COMMAS = 'video,caption\na.mp4,"a cat, again"\nb.mp4,"""hi"" é"\n'


@pytest.mark.parametrize(
    "data",
    [
        COMMAS.encode("utf-8"),
        COMMAS.encode("utf-8-sig"),
        b"\xef\xbb\xbf" + COMMAS.encode("utf-8-sig"),
        COMMAS.encode("utf-16"),
        COMMAS.replace("\n", "\r\n").encode("utf-8"),
        COMMAS.replace("\n", "\r").encode("utf-8"),
        COMMAS.replace("video,caption", " video , caption ").encode("utf-8"),
        COMMAS.replace("\n", "\n\n").encode("utf-8"),
        (COMMAS + ",\n,\n").encode("utf-8"),
        'video;caption\na.mp4;a cat, again\nb.mp4;"""hi"" é"\n'.encode(),
        'video\tcaption\na.mp4\ta cat, again\nb.mp4\t"""hi"" é"\n'.encode(),
        'video;caption\na.mp4;a cat, again\nb.mp4;"""hi"" é"\n'.encode("utf-16"),
    ],
    ids=lambda data: str(data[:24]),
)
def test_a_table_is_read_right(data, tmp_path):
    assert read_table(write_folder(tmp_path, data), "video", "caption") == RIGHT


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('video,caption\na,x\nb,"a man says "hi" to us"\n', 3, "double those inside a caption"),
        ('video,caption\na,"x\nb,y\nc,z\n', 2, "close every quote"),
        ('video,caption\na,"x\nb,y\nc,z"\nd,w\n', 2, "'b,y' stands inside it"),
        (f'video,caption\na,x\nb,"{"word " * 30_000}"\n', 3, "field larger than"),
        ("video,caption\na,x\nb,y\0z\n", 3, "NUL"),
        ("video,caption\na,x\nb,y\n".encode("utf-16-le"), 1, "NUL"),
        ("video,caption\na,x\nb,é\n".encode("latin-1"), 3, "0xE9"),
        ("video,caption\na,x\nb,y,z\n", 3, "number of columns differs"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(text, line, what, tmp_path):
    path = write_folder(tmp_path, text)
    with pytest.raises(DataError, match=f"captions.csv, line {line}: .*{what}"):
        folder_splits(tmp_path)
    with pytest.raises(DataError, match=f"captions.csv, line {line}: .*{what}"):
        read_table(path, "video", "caption")


def test_a_column_that_is_lacking_or_there_twice_is_named(tmp_path):
    write_folder(tmp_path, "video|caption\na|b\n")
    with pytest.raises(DataError, match=r"captions.csv has no column 'video'.*video\|caption"):
        folder_splits(tmp_path)
    write_folder(tmp_path, "video,caption,caption\na,b,c\n")
    with pytest.raises(DataError, match="captions.csv has the column 'caption' twice"):
        folder_splits(tmp_path)
    write_folder(tmp_path, "")
    with pytest.raises(DataError, match="captions.csv has no column 'video'"):
        folder_splits(tmp_path)


def test_a_list_of_bad_videos_that_was_edited_is_named(tmp_path):
    path = tmp_path / "bad_videos.csv"
    path.write_text('video_id,path,reason\nv1,v1.mp4,"it "broke" off"\n', encoding="utf-8")
    with pytest.raises(DataError, match="bad_videos.csv, line 2"):
        BadVideos(path, 10, resume=True)


def test_lsmdc_is_read_with_a_mark_and_quotes_are_characters(tree):
    root = tree("lsmdc")
    path = root / "LSMDC16_annos_training.csv"
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    first = "\t".join([*first.split("\t")[:5], 'He says "hi'])
    path.write_text("\r\n".join([first, *rest]), encoding="utf-8-sig")
    pairs = load_pairs("lsmdc", root, "train")
    assert (len(pairs), pairs[0].caption) == (16, 'He says "hi')
    path.write_text(first.replace("\t", ";"), encoding="utf-8")
    with pytest.raises(DataError, match="training.csv, line 1: 1 columns where LSMDC has 6"):
        load_pairs("lsmdc", root, "train")


@pytest.mark.parametrize("name", ["train_list.txt", "bad_vids.txt"])
def test_a_list_of_ids_is_read_with_a_mark_and_in_utf_16(name, tree):
    dataset = "msvd" if name == "train_list.txt" else "activitynet"
    root = tree(dataset)
    path, pairs = root / name, load_pairs(dataset, root, "train")
    text = path.read_text(encoding="utf-8")
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert load_pairs(dataset, root, "train") == pairs
    path.write_text(text + "é", encoding="latin-1")
    with pytest.raises(DataError, match=f"{name}, line .*0xE9 cannot be read as UTF-8"):
        load_pairs(dataset, root, "train")


# --- every file of every dataset, damaged ---------------------------------------------------------

CONTENTS = {
    "empty": lambda data: b"",
    "null": lambda data: b"null",
    "list": lambda data: b"[]",
    "object": lambda data: b"{}",
    "number": lambda data: b"42",
    "text": lambda data: b'"x"',
    "half": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(range(256)) * 4,
    "deep": lambda data: b"[" * 100_000,
    "digits": lambda data: b"9" * 5_000,
    "list of lists": lambda data: b"[[[]], null, [1]]",
    "object of objects": lambda data: b'{"x": {"y": null}}',
}


@pytest.mark.parametrize("how", [*CONTENTS, "folder", "no rights", "cut gzip", "not gzip"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_a_data_error(name, how, tree, miniatures, monkeypatch):
    for file in sorted(path.name for path in miniatures[name].iterdir()):
        root = tree(name)
        path, data = root / file, (root / file).read_bytes()
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "no rights":
            path.write_bytes(data)
            monkeypatch.setattr(Path, "read_bytes", refuse_reading(file))
        elif how == "cut gzip":
            path.with_name(f"{file}.gz").write_bytes(gzip.compress(data)[:-20])
        elif how == "not gzip":
            path.with_name(f"{file}.gz").write_bytes(gzip.compress(data)[:12] + b"\xff" * 80)
        else:
            path.write_bytes(CONTENTS[how](data))
        errors = load_all(name, root)
        monkeypatch.undo()
        half_a_table = how == "half" and path.suffix != ".json"  # cut at a line, it is a table
        optional = file.endswith(".full.csv") or file in ("bad_vids.txt", CLIP_FILES)
        assert errors or optional or half_a_table, f"{file} was read"
        assert errors or how not in ("folder", "no rights", "garbage", "cut gzip", "not gzip")
        assert all(root.name in error and error.count(".") for error in errors)


def refuse_reading(name: str):
    """Make a reader of files that may not read one of them."""
    read = Path.read_bytes

    def read_bytes(path):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    return read_bytes


def places(content: object, place: tuple = ()):
    """List the places of the values in a JSON file; of a list, the first entry and the last."""
    yield place
    if isinstance(content, dict):
        for key in [*content][:1] + [*content][-1:] if len(content) > 4 else content:
            yield from places(content[key], (*place, key))
    elif isinstance(content, list):
        for n in sorted({0, len(content) - 1}) if content else ():
            yield from places(content[n], (*place, n))


def changed(content: object, place: tuple, value: object) -> object:
    """Copy a JSON value with another value in one place; without it where the value is ..."""
    if not place:
        return value
    copy, (key, *rest) = content.copy(), place
    if value is ... and not rest:
        del copy[key]
    else:
        copy[key] = changed(content[key], rest, value)
    return copy


VALUES = [None, 42, 0.5, True, "", "x", [], {}, [[]], [None], {"x": 1}, "\ud800", "../x", ...]


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_value_is_a_data_error_or_does_no_harm(name, value, tree, miniatures):
    for file in sorted(path.name for path in miniatures[name].glob("*.json")):
        content = json.loads((miniatures[name] / file).read_text(encoding="utf-8"))
        for place in places(content):
            if place or value is not ...:
                root = tree(name)
                write_json(root / file, changed(content, place, value))
                load_all(name, root)


@pytest.mark.parametrize(
    ("name", "file", "place", "value", "message"),
    [
        ("msvd", "captions_msvd.json", (), [1], "captions_msvd.json is a list of 1 and must be an"),
        ("msvd", "captions_msvd.json", ("-4wsuPCj0_5_15",), {"a": 1}, "5_15, caption 1: .*object"),
        ("msvd", "captions_msvd.json", ("-4wsuPCj0_5_15", 1), None, "5_15, caption 2: .* is null"),
        ("msrvtt", "MSRVTT_data.json", (), None, "MSRVTT_data.json is null and must be an object"),
        ("msrvtt", "MSRVTT_data.json", ("videos", 2), 7, r"videos\[2\] is the number 7 and must"),
        ("msrvtt", "MSRVTT_data.json", ("videos", 2, "video_id"), ..., r"videos\[2\] has no 'vid"),
        ("msrvtt", "MSRVTT_data.json", ("sentences", 3, "caption"), 5, "video1, caption 2: .*5"),
        ("activitynet", "train.json", (), [], "train.json is a list of 0 and must be an object"),
        ("activitynet", "train.json", ("v_QOlSCBRm0",), [1], "v_QOlSCBRm0 is a list of 1 and must"),
        ("activitynet", "train.json", ("v_QOlSCBRm0", "timestamps"), [["a", 1]], "'timestamps' mu"),
        ("activitynet", "train.json", ("v_QOlSCBRm0", "timestamps"), None, "'timestamps' is null"),
        ("activitynet", "train.json", ("v_QOlSCBRm0", "sentences"), ..., "has no 'sentences': add"),
        ("activitynet", "train_ids.json", (), {}, "train_ids.json is an object of 0 and must be a"),
        ("activitynet", "train_ids.json", (1,), 3, r"train_ids.json, \[1\]: .* is the number 3"),
        ("lsmdc", CLIP_FILES, (), [], "clip_id_to_file.json is a list of 0 and must be an object"),
        ("folder", "captions.json", (0, "video"), None, r"captions.json, \[0\]: the name .* null"),
        ("folder", "captions.json", (0, "captions"), [42], r"\[0\]: the caption is the number 42"),
        ("folder", "captions.json", (0, "captions"), "", r"\[0\]: the caption is empty"),
        ("folder", "captions.json", (0, "split"), ["x"], r"\[0\], 'split' is a list of 1 and must"),
    ],
)
def test_a_damaged_value_is_named_with_file_and_entry(name, file, place, value, message, tree):
    root = tree(name)
    write_json(root / file, changed(read_json(root / file), place, value))
    with pytest.raises(DataError, match=message):
        load_pairs(name, root, "train")
    assert not check_data(name, root, decode=False).ok


# --- captions -------------------------------------------------------------------------------------


def test_captions_that_are_lists_of_words_are_joined(tree):
    for name, file, key in [
        ("msvd", "captions_msvd.json", None),
        ("msrvtt", "MSRVTT_data.json", "caption"),
        ("activitynet", "train.json", "sentences"),
        ("folder", "captions.json", "captions"),
    ]:
        root = tree(name)
        pairs, content = load_pairs(name, root, "train"), read_json(root / file)
        if name == "msrvtt":
            for sentence in content["sentences"]:
                sentence[key] = sentence[key].split()
        else:
            entries = content if name == "folder" else content.values()
            for texts in [entry if key is None else entry[key] for entry in entries]:
                texts[:] = [text.split() for text in texts]
        write_json(root / file, content)
        assert load_pairs(name, root, "train") == pairs


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (42, "the caption is the number 42"),
        (None, "the caption is null"),
        (" ", "the caption is empty"),
        (True, "the caption is true"),
        ([["a", "cat"]], "the caption is a list of 1"),
        ({"en": "a cat"}, "the caption is an object of 1"),
        ("a \ud83d cat", "holds half of a character"),
    ],
)
def test_what_is_no_caption_is_named_in_every_format(caption, message, tree):
    for name, file, place, entry in [
        ("msvd", "captions_msvd.json", ("-4wsuPCj0_5_15", 0), "-4wsuPCj0_5_15"),
        ("msrvtt", "MSRVTT_data.json", ("sentences", 0, "caption"), "video0"),
        ("activitynet", "train.json", ("v_QOlSCBRm0", "sentences", 0), "v_QOlSCBRm0"),
        ("folder", "captions.json", (0, "captions", 0), r"\[0\]"),
    ]:
        root = tree(name)
        write_json(root / file, changed(read_json(root / file), place, caption))
        with pytest.raises(DataError, match=f"{file}, {entry}.*: .*{message}"):
            load_pairs(name, root, "train")


def test_a_repeated_caption_is_kept_and_counted(tree):
    root = tree("folder")
    captions = read_json(root / "captions.json")
    captions[0]["captions"] *= 3
    write_json(root / "captions.json", captions)
    with pytest.warns(UserWarning, match="4 captions of train repeat one of the same video, 'a"):
        assert len(load_pairs("folder", root, "train")) == 20
    report = check_data("folder", root, decode=False)
    assert not report.problems and report.splits[0].captions == 20
    assert sum("4 captions of train repeat" in note for note in report.notes) == 1


def test_repeated_captions_of_published_files_are_counted_by_the_check_alone(tree):
    root = tree("msrvtt")
    content = read_json(root / "MSRVTT_data.json")
    content["sentences"].append(content["sentences"][0])
    write_json(root / "MSRVTT_data.json", content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_pairs("msrvtt", root, "train")) == 21
    assert "1 caption of train repeats" in check_data("msrvtt", root, decode=False).table()


# --- names ----------------------------------------------------------------------------------------


def renamed(root: Path, on_disk, in_captions) -> list[Pair]:
    """Rename the videos of a folder and those in its captions, and load them."""
    records = read_json(root / "captions.json")
    (root / "videos").mkdir()
    for record in records:
        (root / "videos" / on_disk(record["video"])).touch()
        record["video"] = in_captions(record["video"])
    write_json(root / "captions.json", records)
    return load_pairs("folder", root, "train")


@pytest.mark.parametrize(
    ("on_disk", "in_captions"),
    [
        (str.upper, str),
        (str, str.title),
        (str, lambda name: rf"videos\{name}"),
        (str, lambda name: rf".\Videos\{name}"),
        (
            lambda name: unicodedata.normalize("NFD", f"café_{name}"),
            lambda name: unicodedata.normalize("NFC", f"café_{name}"),
        ),
        (
            lambda name: unicodedata.normalize("NFC", f"CAFÉ_{name}"),
            lambda name: unicodedata.normalize("NFD", f"café_{name}"),
        ),
    ],
)
def test_a_name_from_another_machine_is_found(on_disk, in_captions, tree):
    assert all(os.path.isfile(pair.path) for pair in renamed(tree("folder"), on_disk, in_captions))


def test_two_files_that_differ_only_in_case_or_form_are_told(tree):
    for others in (
        ["SQUARE_0.mp4", "square_0.MP4"],
        [unicodedata.normalize(form, "squaré_0.mp4") for form in ("NFC", "NFD")],
    ):
        root = tree("folder")
        records = read_json(root / "captions.json")
        records[0]["video"] = others[0].title()
        write_json(root / "captions.json", records)
        (root / "videos").mkdir()
        for name in others:
            (root / "videos" / name).touch()
        if len(os.listdir(root / "videos")) == 2:
            with pytest.raises(DataError, match="differ from it only in capital") as caught:
                load_pairs("folder", root, "train")
            assert all(ascii(name)[1:-1] in str(caught.value) for name in others)


def test_an_exact_name_goes_before_a_loose_one(tmp_path):
    for name in ("clip.mp4", "CLIP.mp4"):
        (tmp_path / name).touch()
    write_folder(tmp_path, "video,caption\nclip.mp4,a\nCLIP.mp4,b\n")
    if len(list(tmp_path.glob("*.mp4"))) == 2:
        pairs = load_pairs("folder", tmp_path, "train")
        assert [os.path.basename(pair.path) for pair in pairs] == ["clip.mp4", "CLIP.mp4"]


@pytest.mark.parametrize(
    "bad",
    [
        *("../x", "a/../../x", "/etc/passwd", r"..\x", r"C:\x", "C:/x", r"\\host\x", "x\0"),
        *("file:x", "FILE:///x", "http://host/x", "https://host/x.mp4", "rtsp://host/x"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(name, bad, tree, tmp_path):
    (tmp_path / "x").touch()
    root = tree(name)
    first = load_pairs(name, root, "train")[0].video_id
    for path in root.iterdir():
        text = path.read_text(encoding="utf-8")
        new = json.dumps(bad)[1:-1] if path.suffix == ".json" else bad
        path.write_text(text.replace(first, new), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_pairs(name, root, "train")
    message = str(caught.value)
    assert repr(bad)[1:-1] in message or ("\0" in bad and "NUL" in message), message


def test_a_listed_file_that_leads_elsewhere_is_refused(tree):
    root = tree("lsmdc")
    clip = load_pairs("lsmdc", root, "train")[0].video_id
    for bad, message in [
        ("../x.avi", f"{CLIP_FILES}, {clip}: the name '../x.avi' leads out"),
        ("http://host/x.avi", f"{CLIP_FILES}, {clip}: the name 'http://host/x.avi' is a drive or"),
        ("/etc/passwd", "the video '/etc/passwd' lies outside of"),
    ]:
        write_json(root / CLIP_FILES, {clip: bad})
        with pytest.raises(DataError, match=message):
            load_pairs("lsmdc", root, "train")


def test_a_link_below_the_root_may_lead_anywhere(tree, tmp_path):
    root = tree("folder")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "square_0.mp4").touch()
    (root / "videos").symlink_to(tmp_path / "elsewhere")
    assert os.path.isfile(load_pairs("folder", root, "train")[0].path)


def test_a_folder_that_cannot_be_listed_is_told(tree, monkeypatch):
    root = tree("folder")
    (root / "videos" / "locked").mkdir(parents=True)
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match="locked cannot be listed .Permission denied."):
        load_pairs("folder", root, "train")


# --- names that are not UTF-8 ---------------------------------------------------------------------


@pytest.fixture
def latin_tree(tree) -> Path:
    """Make a folder with a video whose name is not UTF-8."""
    root = tree("folder")
    (root / "videos").mkdir()
    try:
        (root / "videos" / LATIN).write_bytes(b"no video")
    except OSError:
        pytest.skip("this file system takes no such name")
    return root


def test_the_check_prints_names_that_are_not_utf_8(latin_tree):
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    code = "from promptswitch_nb.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "check-data", "folder", "--root", str(latin_tree)]
    done = subprocess.run(command, capture_output=True, env=strict, timeout=200)
    assert rb"without a caption, such as" in done.stdout and rb"caf\udce9.mp4" in done.stdout
    done.stdout.decode("utf-8")


def test_a_name_that_is_not_utf_8_is_asked_for_and_found(latin_tree):
    records = read_json(latin_tree / "captions.json")
    records += [dict(video=LATIN, caption="a café", split=s) for s in ("train", "val", "test")]
    write_json(latin_tree / "captions.json", records)
    with pytest.warns(UserWarning, match="share 1 of their videos"):
        pairs = load_pairs("folder", latin_tree, "train")
    assert pairs[-1].video_id == LATIN and os.path.isfile(pairs[-1].path)
    report = check_data("folder", latin_tree)
    assert [video_id for video_id, _, _ in report.bad] == [LATIN]
    report.table(show=99).encode("utf-8")
    assert rb"share 1 of their videos, such as caf\udce9" in report.table().encode("utf-8")


def test_a_validation_split_is_held_out_whatever_the_names(latin_tree):
    write_json(latin_tree / "captions.json", {LATIN: "a café"})
    assert load_pairs("folder", latin_tree, "val")[0].video_id == LATIN


def test_files_are_written_whatever_the_names(tmp_path):
    text = f"{LATIN} \ud800 é"
    write_text(tmp_path / "a.txt", text)
    assert read_text(tmp_path / "a.txt") == r"caf\udce9.mp4 \ud800 é"
    write_csv(tmp_path / "a.csv", ["path"], [dict(path=text)])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        assert [*csv.DictReader(file)] == [dict(path=r"caf\udce9.mp4 \ud800 é")]
    write_json(tmp_path / "a.json", [text])
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [text]
    BadVideos(tmp_path / "bad.csv", 9).add([(LATIN, LATIN, "broken")])
    assert len(BadVideos(tmp_path / "bad.csv", 9, resume=True)) == 1


# --- splits, and folders of others ----------------------------------------------------------------


def test_a_video_in_training_and_in_the_test_is_told_when_training_pairs_are_loaded(tree):
    root = tree("folder")
    records = read_json(root / "captions.json")
    records.append(dict(video="square_0", caption="a square", split="test"))
    (root / "videos").mkdir()
    (root / "videos" / "square_0.mp4").touch()
    write_json(root / "captions.json", records)
    with pytest.warns(
        UserWarning, match="train and test share 1 of their videos, such as square_0"
    ):
        load_pairs("folder", root, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pairs("folder", root, "test")
    report = check_data("folder", root, decode=False)
    assert len(report.problems) == 1 and not report.notes and not report.ok


@pytest.mark.parametrize("name", NAMES)
def test_published_files_are_loaded_without_a_warning(name, tree):
    root = tree(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for split, variant in every_split(name):
            load_pairs(name, root, split, variant=variant)


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_is_not_written_over_the_files_of_others(name, tree):
    root = tree(name)
    if name == "lsmdc":
        (root / CLIP_FILES).unlink()
    assert write_example(name, root, videos=False) == root
    file = sorted(root.iterdir())[0]
    file.write_text("mine", encoding="utf-8")
    before = {path: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(FileExistsError, match=f"holds {file.name}, which is no part"):
        write_example(name, root)
    assert {path: path.read_bytes() for path in root.iterdir()} == before


def test_motion_pairs_of_a_damaged_file_are_a_data_error(tmp_path):
    for content in (None, 3, [3], [dict(reversed_caption=1)], [dict(reversed_caption="x")]):
        write_json(tmp_path / "captions_test.json", content)
        with pytest.raises(DataError, match="captions_test.json"):
            motion_pairs(tmp_path)
