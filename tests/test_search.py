"""Search by the rules: filters, order, re-ranking, faults, and real clips."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import small_model

from promptswitch_nb.catalogue import VideoIndex
from promptswitch_nb.gallery import evaluating
from promptswitch_nb.search import parse_query
from promptswitch_nb.video import load_frames
from promptswitch_nb.video import write_video
from promptswitch_nb.windows import Windowing

SECOND = Windowing(seconds=1.0, overlap=0.0)
DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")


def write_noise(path: Path, seed: int, seconds: int = 1) -> Path:
    """Write a video of one noisy picture that brightens."""
    pixels = np.random.default_rng(seed).integers(0, 255, (1, 32, 32, 3))
    ramp = np.linspace(0.5, 1, 12 * seconds)[:, None, None, None]
    return write_video(path, (pixels * ramp).astype(np.uint8))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Write eight videos of a second and two of five."""
    folder = tmp_path_factory.mktemp("search") / "videos"
    for i in range(8):
        write_noise(folder / f"{'trip' if i < 4 else 'home'}" / f"{i}.mp4", i)
    for i in (8, 9):
        write_noise(folder / f"{i}.mp4", i, seconds=5)
    return folder


@pytest.fixture(scope="module")
def index(videos) -> VideoIndex:
    """Index them in windows of a second."""
    index = VideoIndex.open(videos.parent / "videos.lance", small_model())
    index.add(videos, windowing=SECOND, quiet=True)
    return index


def test_hits_are_the_models_own_ranking(index, videos):
    """Without spans and copies, hits come as cosines order them."""
    model = index.model
    hits = index.search("a red square", 10, per_video=True, dedupe=False)
    assert len(hits) == 10
    with evaluating(model):
        query = model.encode_text(["a red square"])[0]
        for hit in hits:
            if hit.duration < 1.5:
                own = model.encode_video(load_frames(hit.path, model.preprocess)[None])[0]
                assert hit.score == pytest.approx(float(own @ query), abs=1e-5)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert [hit.confidence for hit in hits] == sorted(
        (hit.confidence for hit in hits), reverse=True
    )


def test_what_cannot_be_a_question_is_refused(index):
    """No hits, nothing left of a sum, no day, no such window: each is an error that says so."""
    with pytest.raises(ValueError, match="ask for 1 hit or more"):
        index.search("a red square", 0)
    with pytest.raises(ValueError, match="Nothing is left"):
        index.search('"a" - "a"')
    with pytest.raises(ValueError, match="write a day as"):
        index.search("a", after="soon")
    with pytest.raises(KeyError):
        index.similar("nowhere:0")
    assert index.search("a red square", path="no such folder") == []


@pytest.mark.parametrize("is_text", [True, False])
def test_a_verdict_says_what_the_hits_were_compared_with(index, videos, is_text):
    query = "a red square" if is_text else videos / "8.mp4"
    said = index.search(query, min_confidence=0.9999).verdict
    compared = "unrelated texts" if is_text else "windows of other files"
    assert said.startswith("Nothing like that here") and f" {compared} find something" in said


def test_filters_choose_videos(index, videos):
    """Path, length and day leave out the others; a filter that takes none finds none."""
    found = index.search("a red square", 20, path="trip", dedupe=False)
    assert {hit.path.parent.name for hit in found} == {"trip"}
    assert len(found) == 4
    long = index.search("a red square", 20, min_duration=3, per_video=True)
    assert {hit.path.name for hit in long} == {"8.mp4", "9.mp4"}
    assert index.search("a red square", after="2999-01-01") == []
    assert len(index.search("a red square", after="2001-01-01")) == 10
    assert len(index.search("a red square", 20, before="2999-01-01", per_video=True)) >= 8
    assert index.search("a red square", max_shot=0.5) == []


def test_a_video_finds_itself_whatever_its_length(index, videos, tmp_path):
    """A file of many windows is asked with all of them, under any name, in the index or not."""
    for name in ("8.mp4", "9.mp4", "trip/2.mp4"):
        hit = index.search(videos / name, 1)[0]
        assert hit.path == videos / name
        assert hit.score == pytest.approx(1, abs=1e-4)
    same = shutil.copy(videos / "8.mp4", tmp_path / "same.mp4")
    assert index.search(Path(same), 1)[0].path == videos / "8.mp4"
    with open(same, "ab") as file:
        file.write(b"another content")
    other = index.search(Path(same), 1)[0]
    assert (other.path, other.score) == (videos / "8.mp4", pytest.approx(1, abs=1e-4))


ORDER = '"a red square" THEN "a blue ring"'


def test_order_needs_one_video_and_the_right_sequence(index):
    """THEN finds two windows of one video, the first before the second."""
    hits = index.search(ORDER, 5)
    assert {hit.path.name for hit in hits} <= {"8.mp4", "9.mp4"}
    for hit in hits:
        assert hit.end - hit.start >= 2 - 1e-3
    vectors, columns = index.gallery.vectors, index.gallery.columns
    with evaluating(index.model):
        steps = index.model.encode_text(["a red square", "a blue ring"])
    best = -np.inf
    for file in {hit.file for hit in hits}:
        rows = np.flatnonzero(columns["file"] == file)
        rows = rows[np.argsort(columns["start"][rows])]
        scores = (steps @ vectors[rows].T).numpy()
        for i in range(len(rows)):
            for j in range(i + 1, len(rows)):
                best = max(best, (scores[0, i] + scores[1, j]) / 2)
    assert hits[0].score == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("filters", [{}, dict(path="9.mp4")])
def test_order_is_found_in_an_index_that_is_too_large_for_memory(index, filters):
    """THEN reads the promising videos whole, from wherever their windows are."""
    with mock.patch("promptswitch_nb.catalogue.EXACT_UP_TO", 0):
        large = VideoIndex(index.store, index.model)
        assert large.gallery is None
        found = [held.search(ORDER, 5, **filters) for held in (index, large)]
    here, there = [[(hit.id, hit.start, hit.end) for hit in hits] for hits in found]
    assert here == there and here
    with mock.patch("promptswitch_nb.search.WINDOWS_IN_ORDER", 1):
        assert len({hit.file for hit in large.search(ORDER, 5, **filters)}) <= 1


def test_the_models_similarity_ranks_again(videos, tmp_path):
    """A system that is more than a dot product has the last word, from what was stored."""
    model = small_model(fusion="xpool")
    index = VideoIndex.open(tmp_path / "x.lance", model)
    index.add(videos / "trip", quiet=True)
    hits = index.search("a green ring moves left", 4, dedupe=False)
    paths = sorted((videos / "trip").glob("*.mp4"))
    with evaluating(model):
        frames = torch.stack([load_frames(path, model.preprocess) for path in paths])
        text = model.text_features(model.tokenize(["a green ring moves left"]))
        scores = model.similarity(text, model.video_features(frames))[0]
    order = scores.argsort(descending=True).tolist()
    assert [hit.path for hit in hits] == [paths[i] for i in order]
    for hit, i in zip(hits, order):
        assert hit.score == pytest.approx(float(scores[i]), abs=2e-3)  # stored in half precision
    first = index.search("a green ring moves left", 4, dedupe=False, rerank=1)
    with evaluating(model):
        pooled = model.video_features(frames)["pooled"] @ text["pooled"][0]
    assert [hit.path for hit in first] == [paths[int(pooled.argmax())]]


def test_names_of_any_bytes_are_indexed_and_found(videos, tmp_path):
    """A name may hold quotes, blanks, #, %, a newline and bytes that are no text."""
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [b'it\'s "a" name #t=1,2 100%.mp4', b"line\nbreak.mp4", b"caf\xe9.mp4", b"-k.mp4"]
    for i, name in enumerate(names):
        path = os.path.join(os.fsencode(folder), name)
        shutil.copy(videos / "trip" / f"{i}.mp4", path)
    index = VideoIndex.open(tmp_path / "odd.lance", small_model())
    assert index.add(folder, quiet=True).added == 4
    hits = index.search("a red square", 4, dedupe=False)
    assert {os.fsencode(hit.path.name) for hit in hits} == set(names)
    for hit in hits:
        assert index.path_of(hit.file) == hit.path
        itself = index.search(hit.path, 1)[0]
        assert itself.file == hit.file
        assert itself.score == pytest.approx(1, abs=1e-4)


def test_copies_are_folded_and_moved_files_found(videos, tmp_path):
    """A file under two names is one hit, with the other name as its copy."""
    folder = tmp_path / "twice"
    shutil.copytree(videos / "trip", folder)
    shutil.copy(folder / "0.mp4", folder / "zero again.mp4")
    index = VideoIndex.open(tmp_path / "t.lance", small_model())
    index.add(folder, quiet=True)
    (hit,) = index.search(folder / "0.mp4", 1)
    assert hit.path.name == "0.mp4"
    assert [copy.path.name for copy in hit.copies] == ["zero again.mp4"]
    (folder / "0.mp4").unlink()
    assert index.path_of(hit.file).name == "zero again.mp4"
    assert index.add(folder, quiet=True).removed == 1
    assert index.search(folder / "zero again.mp4", 1)[0].path.name == "zero again.mp4"


def test_readers_see_what_a_writer_adds(videos, tmp_path):
    """While one process indexes, others search, and see files as they are done."""
    database, folder = tmp_path / "grows.lance", tmp_path / "grows"
    small_model().save(tmp_path / "model")
    shutil.copytree(videos / "trip", folder / "a")
    writer = VideoIndex.open(database, str(tmp_path / "model"))
    writer.add(folder / "a", quiet=True)
    readers = [VideoIndex.open(database) for _ in range(2)]
    seen = [set(), set()]
    stop = threading.Event()

    def keep_reading(number: int) -> None:
        """Search again and again."""
        while not stop.is_set():
            seen[number].add(len(readers[number].search("a red square", 20, dedupe=False)))
            time.sleep(0.1)

    threads = [threading.Thread(target=keep_reading, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    shutil.copytree(videos / "home", folder / "b")
    command = [sys.executable, "-m", "promptswitch_nb.cli", "index", folder, "--db", database]
    done = subprocess.run(map(str, command), capture_output=True, text=True, timeout=600)
    deadline = time.monotonic() + 60
    while not all(8 in counts for counts in seen) and time.monotonic() < deadline:
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert done.returncode == 0, done.stderr
    assert all({4, 8} <= counts for counts in seen), seen


def test_an_index_survives_kills():
    """Two runs are killed at random moments; nothing committed is lost, nothing is there twice."""
    script = Path(__file__).with_name("kill_indexing.py")  # a process that has not used LanceDB
    command = [sys.executable, str(script), "--times", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill ") == 2


def test_a_file_that_changes_is_encoded_anew(videos, tmp_path):
    """The old windows of a file leave when its content changes; a skipped one is looked at."""
    folder = tmp_path / "changes"
    shutil.copytree(videos / "trip", folder)
    (folder / "bad.mp4").write_text("nothing")
    index = VideoIndex.open(tmp_path / "c.lance", small_model())
    report = index.add(folder, quiet=True)
    assert (report.added, [Path(path).name for path, _ in report.skipped]) == (4, ["bad.mp4"])
    old = index.search(folder / "0.mp4", 1)[0].file
    write_noise(folder / "0.mp4", seed=77)
    write_noise(folder / "bad.mp4", seed=78)
    report = index.add(folder, quiet=True)
    assert (report.added, report.unchanged, report.skipped) == (2, 3, [])
    assert old not in index.files
    assert index.store.count("windows") == 5


def test_status_and_queries_that_are_refused(index):
    """Status counts; a query that cannot be read says where."""
    told = index.status()
    assert (told["files"], told["windows"], told["running"]) == (10, 18, False)
    with pytest.raises(ValueError, match="empty"):
        index.search("   ")
    with pytest.raises(KeyError):
        index.why("a red square", "nothing:0")
    assert str(parse_query('"a" + 2:"b" - "c"')) == '"a" + 2:"b" - "c"'


@pytest.mark.skipif(not DATA, reason="PROMPTSWITCH_TEST_DATA is not set")
def test_real_clips_find_themselves(tmp_path):
    """Every real clip finds itself first by its own vector; broken files are listed."""
    clips = Path(DATA) / "data" / "clips"
    index = VideoIndex.open(tmp_path / "real.lance", small_model())
    report = index.add(clips, quiet=True)
    known = {path.name for path in clips.iterdir() if path.is_file()} - {"manifest.json"}
    told = index.status()
    assert told["files"] + len(told["skipped"]) == report.added + len(report.skipped)
    assert all(reason for _, reason in report.skipped)
    paths = {Path(os.fsdecode(p)).name for file in index.files.values() for p in file.paths}
    assert known <= paths
    vectors = index.gallery.vectors
    for row, name in enumerate(index.gallery.ids):
        scores, rows = index.gallery.top(vectors[row], 1)
        assert scores[0] == pytest.approx(1, abs=1e-4)
        assert torch.allclose(vectors[rows[0]], vectors[row], atol=1e-4), name
    for hit in index.search("a red square", 50, dedupe=False):
        assert 0 <= hit.start < hit.end <= hit.duration + 0.1
        assert hit.thumbnail[:2] == b"\xff\xd8"
