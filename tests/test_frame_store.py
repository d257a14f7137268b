"""A store of frames: whole after every fault, and the same samples as from files."""

import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from promptswitch_nb import caching
from promptswitch_nb.annotations import DataError
from promptswitch_nb.annotations import Pair
from promptswitch_nb.apart import Failed
from promptswitch_nb.apart import in_processes
from promptswitch_nb.caching import CacheConfig
from promptswitch_nb.caching import cache
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.datasets import load_pairs
from promptswitch_nb.datasets import write_example
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.frame_store import ROWS
from promptswitch_nb.frame_store import FrameStore
from promptswitch_nb.frame_store import write_part
from promptswitch_nb.frames import Preprocess
from promptswitch_nb.frames import resize
from promptswitch_nb.gallery import encode_split
from promptswitch_nb.kept_frames import StorePlan
from promptswitch_nb.kept_frames import compress_video
from promptswitch_nb.kept_frames import nearest
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.raw_frames import RawFrames
from promptswitch_nb.runs import read_log
from promptswitch_nb.samples import GalleryDataset
from promptswitch_nb.samples import VideoTextDataset
from promptswitch_nb.samples import collate
from promptswitch_nb.samples import each_batch
from promptswitch_nb.samples import loader_options
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import train
from promptswitch_nb.video import VideoError
from promptswitch_nb.video import open_video
from promptswitch_nb.video import write_video

pytest.importorskip("simplejpeg")
pytest.importorskip("pyarrow")

VIEWS = dict(
    paper=Preprocess(image_size=32),
    official=Preprocess(
        image_size=32,
        transform="crop",
        flip=True,
        train_sampler="official_random",
        test_sampler="official_uniform",
    ),
    random=Preprocess(image_size=32, transform="crop", train_sampler="random"),
)


@pytest.fixture(autouse=True, scope="module")
def small_sample():
    """Let these few videos come into several files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caching, "SAMPLE", 2)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Make a data tree of MSR-VTT's format."""
    root = tmp_path_factory.mktemp("data") / "msrvtt"
    write_example("msrvtt", root)
    return root


@pytest.fixture
def copied(data, tmp_path) -> Path:
    """Copy the data tree, to change it."""
    return shutil.copytree(data, tmp_path / "msrvtt")


def config(root: Path, out: Path, **settings) -> CacheConfig:
    """Ask for a store, made in this process."""
    given = dict(dataset="msrvtt", root=str(root), out=str(out), workers=0, part_mb=0.01)
    return CacheConfig(**given | settings)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> FrameStore:
    """Make a store that has all frames."""
    return FrameStore(cache(config(data, tmp_path_factory.mktemp("all") / "store", frames=0)))


@pytest.fixture(scope="module")
def usual(data, tmp_path_factory) -> FrameStore:
    """Make a store as the command makes it."""
    return FrameStore(cache(config(data, tmp_path_factory.mktemp("usual") / "store")))


def contents(folder: Path) -> dict[str, bytes]:
    """Read all pictures of a store: id and frame → JPEG."""
    store, found = FrameStore(folder), {}
    for name, entry in store.entries.items():
        for position, number in enumerate(entry.frames):
            rows = store._rows(entry.part, entry.group + position // ROWS)
            found[name, int(number)] = rows[position % ROWS].as_py()
    return found


def away(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Tell how far inputs are apart on average; a colour varies by about 1."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return (ours - theirs).abs().mean().item()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("train_it", [True, False], ids=["train", "test"])
def test_samples_are_those_of_the_files_up_to_jpeg(data, whole, view, train_it):
    seen, pairs = VIEWS[view], load_pairs("msrvtt", data, "train")
    make = partial(VideoTextDataset, seed=3) if train_it else GalleryDataset
    files, stored = make(pairs, seen), make(pairs, seen, store=whole)
    for epoch in range(2):
        if train_it:
            files.set_epoch(epoch)
            stored.set_epoch(epoch)
        theirs = collate([files[i] for i in range(len(files))])
        ours = collate([stored[i] for i in range(len(files))])
        assert isinstance(ours["frames"], RawFrames)
        assert away(ours["frames"].to("cpu"), theirs["frames"]) < 0.06
        for name in ("video_ids", "captions"):
            assert ours[name] == theirs[name]
        assert torch.equal(ours["index"], theirs["index"])


def test_another_drawing_is_far_away(data, whole):
    # the limit above would not let a wrong frame or crop through
    pairs, seen = load_pairs("msrvtt", data, "train"), VIEWS["random"]
    files = VideoTextDataset(pairs, seen, seed=3)
    stored = VideoTextDataset(pairs, seen, seed=4, store=whole)
    both = [collate([part[i] for i in range(len(files))])["frames"] for part in (files, stored)]
    assert away(both[1].to("cpu"), both[0]) > 0.1


def test_the_papers_samplings_are_kept_frame_for_frame():
    for n_total in (1, 5, 12, 13, 49, 50, 51, 77, 300, 301, 5000):
        kept = StorePlan().numbers(n_total)
        assert len(kept) <= 50 and (np.diff(kept) > 0).all() and kept[-1] < n_total
        for train_it in (True, False):
            wanted = Preprocess().choose_frames(n_total, train=train_it)
            assert (kept[nearest(kept, wanted)] == wanted).all()


def test_the_nearest_frame_is_given(tmp_path):
    frames = np.stack([np.full((16, 16, 3), 2 * t, np.uint8) for t in range(120)])
    path = write_video(tmp_path / "grey.mp4", frames, fps=10, options={"crf": "0"})
    decoded = open_video(path).frames(np.arange(120))
    for plan in (StorePlan(frames=5, exact=()), StorePlan(frames=0), StorePlan(frames=100)):
        write_part(tmp_path / f"{plan.frames}", {"grey": compress_video(path, plan)}, plan)
        store = FrameStore(tmp_path / f"{plan.frames}")
        kept, stored = plan.numbers(120), store.open("grey")
        assert len(stored) == 120
        wanted = np.random.default_rng(0).integers(0, 120, 40)
        closest = kept[[np.abs(kept - number).argmin() for number in wanted]]
        assert np.abs(stored.frames(wanted) - decoded[closest].astype(int)).max() <= 2
        rows = store._rows("part-00000.parquet", 0)
        assert len(rows) == min(ROWS, len(kept))
        both = {name: compress_video(path, plan) for name in ("grey", "again")}
        write_part(tmp_path / f"{plan.frames}", both, plan)  # a video after one of several groups
        again = FrameStore(tmp_path / f"{plan.frames}").open("again")
        assert (again.frames(wanted) == stored.frames(wanted)).all()


def test_pictures_are_made_smaller_and_never_larger(tmp_path):
    for (H, W), expected in {
        (300, 600): (256, 512),
        (520, 256): (520, 256),
        (8, 8): (8, 8),
    }.items():
        path = write_video(tmp_path / f"{H}.mp4", np.zeros((3, H, W, 3), np.uint8))
        video = compress_video(path, StorePlan())
        assert (video.height, video.width) == expected
    assert video.numbers.tolist() == [0, 1, 2]


def test_parquet_holds_what_others_can_read(usual):
    import pyarrow.parquet as pq

    table = pq.read_table(usual.folder / "part-00000.parquet")
    assert table.column_names == ["id", "frame", "time", "bytes", "width", "height"]
    row = table.slice(3, 1).to_pylist()[0]
    assert row["time"] == pytest.approx(row["frame"] / 12)
    assert row["bytes"].startswith(b"\xff\xd8")


def test_bytes_of_another_device_are_rounded_as_here(monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), dtype=np.uint8)
    here = resize(frames, (32, 32)).int()
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"), raising=False)
    assert (resize(frames, (32, 32)).int() - here).abs().max() <= 1


class TestFaults:
    def test_a_second_run_adds_what_is_new_and_reads_anew_what_changed(self, copied, tmp_path):
        part = config(copied, tmp_path / "store", splits=("train",))
        cache(part)
        before = contents(part.out)
        pairs = load_pairs("msrvtt", copied, "train")
        shutil.copyfile(pairs[-1].path, pairs[0].path)
        with pytest.raises(DataError, match="1 video changed .*run `promptswitch cache`"):
            VideoTextDataset(pairs, VIEWS["paper"], store=FrameStore(part.out))
        cache(config(copied, tmp_path / "store"))
        after, test = contents(part.out), load_pairs("msrvtt", copied, "test")
        assert {name for name, _ in after} > {name for name, _ in before}
        changed = {key[0] for key in before if before[key] != after[key]}
        assert changed == {pairs[0].video_id}
        assert len(GalleryDataset(test, VIEWS["paper"], store=FrameStore(part.out)))

    def test_other_settings_need_another_folder(self, data, usual):
        with pytest.raises(ConfigError, match="write the same settings, or choose another --out"):
            cache(config(data, usual.folder, quality=80))

    def test_two_runs_do_not_meet(self, data, usual):
        refused = pytest.raises(ConfigError, match="another process is caching in")
        with caching.hold_folder(usual.folder, "caching"), refused:
            cache(config(data, usual.folder))

    def test_unknown_videos(self, usual, data):
        pairs = [*load_pairs("msrvtt", data, "test"), Pair("new", "new.mp4", "new")]
        with pytest.raises(DataError, match="the frame store .* lacks 1 video, new the first"):
            GalleryDataset(pairs, VIEWS["paper"], store=usual)
        with pytest.raises(DataError, match="new the first"):
            usual.open("new")

    def test_a_store_travels_without_its_videos(self, copied, tmp_path):
        cache(config(copied, tmp_path / "here"))
        store = FrameStore(shutil.move(tmp_path / "here", tmp_path / "there"))
        shutil.rmtree(copied / "videos")
        gallery = GalleryDataset(load_pairs("msrvtt", copied, "test"), VIEWS["paper"], store=store)
        assert gallery[0]["frames"].to("cpu").shape == (1, 12, 3, 32, 32)
        cache(config(copied, tmp_path / "there"))  # nothing is lost by it
        assert FrameStore(tmp_path / "there").entries.keys() == store.entries.keys()
        assert not FrameStore(tmp_path / "there").bad

    def test_bad_videos_are_listed_and_replaced_as_from_files(self, copied, tmp_path, capsys):
        pairs = load_pairs("msrvtt", copied, "train")
        Path(pairs[0].path).write_bytes(b"no video" * 99)
        gone = next(pair for pair in pairs if pair.video_id != pairs[0].video_id)
        os.unlink(gone.path)
        store = FrameStore(cache(config(copied, tmp_path / "store", frames=0)))
        assert store.bad.keys() == {pairs[0].video_id, gone.video_id}
        assert f"bad: {gone.video_id}, {gone.path}: " in capsys.readouterr().out
        with pytest.raises(VideoError):
            store.open(gone.video_id, gone.path)
        cache(config(copied, tmp_path / "store", frames=0))
        assert capsys.readouterr().out.startswith("0 of ")  # not tried again unless mended
        seen = VIEWS["random"]
        files, stored = VideoTextDataset(pairs, seen), VideoTextDataset(pairs, seen, store=store)
        for i in range(len(pairs)):
            theirs, ours = files[i], stored[i]
            assert ours["bad"] == theirs["bad"] and ours["video_id"] == theirs["video_id"]
            assert away(ours["frames"].to("cpu")[0], theirs["frames"]) < 0.06
        shutil.copyfile(pairs[-1].path, pairs[0].path)
        with pytest.raises(DataError, match="1 video changed"):
            VideoTextDataset(pairs, seen, store=store)
        cache(config(copied, tmp_path / "store", frames=0))
        assert FrameStore(store.folder).bad.keys() == {gone.video_id}
        VideoTextDataset(pairs, seen, store=FrameStore(store.folder))

    def test_a_damaged_part_is_named(self, usual, tmp_path):
        folder = shutil.copytree(usual.folder, tmp_path / "store")
        part = folder / "part-00001.parquet"
        content = part.read_bytes()
        part.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match="part-00001.parquet is no whole part .* remove it"):
            FrameStore(folder)
        start = content.index(b"\xff\xd8")
        part.write_bytes(content[:start] + bytes(500) + content[start + 500 :])
        store = FrameStore(folder)
        names = [name for name, entry in store.entries.items() if entry.part == part.name]
        with pytest.raises(DataError, match="part-00001.parquet is damaged"):
            for name in names:
                store.open(name).frames(np.arange(len(store.open(name))))

    def test_a_part_that_was_removed_is_made_again(self, data, usual, tmp_path):
        folder = shutil.copytree(usual.folder, tmp_path / "store")
        before = contents(folder)
        Path(folder, "part-00001.parquet").unlink()
        assert len(contents(folder)) < len(before)
        cache(config(data, folder))
        assert contents(folder) == before

    def test_small_pictures_are_refused_for_a_large_model(self, data, usual):
        pairs = load_pairs("msrvtt", data, "test")
        with pytest.raises(DataError, match="--short_side 336"):
            GalleryDataset(pairs, Preprocess(image_size=336), store=usual)

    def test_frames_that_are_not_kept_are_told(self, data, tmp_path):
        pairs = load_pairs("msrvtt", data, "test")
        store = FrameStore(cache(config(data, tmp_path / "store", frames=3, exact=(4,))))
        with pytest.warns(UserWarning, match="up to [1-9]"):
            GalleryDataset(pairs, Preprocess(image_size=32), store=store)

    def test_a_large_store_is_refused_before_it_is_written(self, data, tmp_path, monkeypatch):
        monkeypatch.setattr(caching.shutil, "disk_usage", lambda folder: os_space(5000))
        with pytest.raises(DataError, match="would take about .* has 0.0 MB free: make room"):
            cache(config(data, tmp_path / "store"))
        assert not list(Path(tmp_path, "store").glob("*.parquet"))


def os_space(free: int):
    """Pretend a disk."""
    return shutil._ntuple_diskusage(10**9, 10**9 - free, free)


def test_the_size_is_estimated_well(data, usual, tmp_path, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(caching, "check_room", lambda folder, expected: said.append(expected))
    monkeypatch.setattr(caching, "SAMPLE", 4)
    folder = cache(config(data, tmp_path / "store"))
    pictures = sum(map(len, contents(folder).values()))
    assert len(said) == 1 and 0.8 < said[0] / pictures < 1.25


def test_names_from_all_over_a_list_come_first():
    names = [f"{i}" for i in range(100)]
    order = caching.spread_first(names)
    assert sorted(order) == sorted(names) and order[:2] == ["0", "50"]
    assert sorted(caching.spread_first(names[:5])) == names[:5] and caching.spread_first([]) == []


RUN = "import sys; from promptswitch_nb.caching import main; main(sys.argv[1:])"


def command(root: Path, out: Path, *arguments: object) -> list[str]:
    """Write the command line of another process."""
    start = [sys.executable, "-c", RUN, "msrvtt", "--root", root, "--out", out]
    return [*map(str, start), "--part_mb", "0.01", *map(str, arguments)]


@pytest.mark.parametrize(("workers", "kills"), [(0, (1, 3)), (2, (2,))])
def test_killed_and_resumed(data, usual, tmp_path, workers, kills):
    out = tmp_path / "store"
    slow = "import promptswitch_nb.caching as c, time; write, c.SAMPLE = c.write_part, 2\n"
    slow += "def slowly(*a):\n    time.sleep(0.3)\n    return write(*a)\n"
    slow += "c.write_part = slowly; import sys; sys.exit(c.main(sys.argv[1:]))"
    first = command(data, out, "--workers", workers)
    first[2] = slow
    for parts in kills:
        process = subprocess.Popen(first, stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 100
        while len(list(out.glob("part-*.parquet"))) < parts:
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert FrameStore(out).entries
    Path(out, ".1234.part-00009.parquet").write_bytes(b"half")
    done = subprocess.run(command(data, out, "--workers", workers), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith("12 of 12") and "done before" in done.stdout
    assert contents(out) == contents(usual.folder)
    assert not list(out.glob(".*.parquet"))


def test_a_full_disk_leaves_a_whole_store(data, usual, small_disk, monkeypatch):
    small_disk.resize("60k")
    store = small_disk.place / "store"
    monkeypatch.setattr(caching, "check_room", lambda folder, expected: None)
    with pytest.raises(OSError, match="No space left on device"):
        cache(config(data, store))
    assert not list(store.glob(".*.parquet"))
    assert 0 < len(FrameStore(store).entries) < 12
    small_disk.resize("9m")
    assert contents(cache(config(data, store))) == contents(usual.folder)


def test_a_file_that_crashes_or_hangs_its_decoder(tmp_path, monkeypatch):
    Path(tmp_path, "odd.py").write_text(
        "import os, time\n"
        "def work(item):\n"
        "    if item == 10:\n        os._exit(7)\n"
        "    if item == 20:\n        time.sleep(100)\n"
        "    if item == 30:\n        raise ValueError('no good')\n"
        "    return 2 * item\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    work, items = importlib.import_module("odd").work, {f"v{n}": 10 * n for n in range(7)}
    found = list(in_processes(work, items, workers=2, seconds=10))
    assert len(found) == 7
    assert dict(found) == {
        "v0": 0,
        "v1": Failed("its decoder crashed (exit status 7)"),
        "v2": Failed("it is not read after 10 seconds"),
        "v3": Failed("ValueError: no good"),
        "v4": 80,
        "v5": 100,
        "v6": 120,
    }
    assert not multiprocessing.active_children()


def test_workers_give_the_same(data, whole):
    pairs = load_pairs("msrvtt", data, "train")
    stored = VideoTextDataset(pairs, VIEWS["random"], store=whole)
    stored[0]  # a file is open in this process
    loader = DataLoader(stored, batch_size=4, **loader_options(2))
    for first, batch in zip(range(0, len(pairs), 4), each_batch(loader)):
        here = collate([stored[i] for i in range(first, min(first + 4, len(pairs)))])
        assert torch.equal(batch["frames"].to("cpu"), here["frames"].to("cpu"))
        assert batch["captions"] == here["captions"]


class TestRuns:
    def test_training_and_evaluation(self, small_run, tmp_path):
        root, out = small_run["data_root"], str(tmp_path / "frames")
        given = dict(dataset="folder", root=root, out=out, workers=0, exact=(2,))
        cache(CacheConfig(**given, frames=0))
        stored = TrainConfig.from_dict(small_run | dict(frame_store=out))
        assert not stored.cache
        folder = train(stored)
        small_run["output_dir"] += "-files"
        other = train(TrainConfig.from_dict(small_run))
        for ours, theirs in zip(read_log(folder), read_log(other), strict=True):
            assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=0.05)
        results = {}
        for name, place in dict(store=out, files="").items():
            c = dict(checkpoint=str(folder / "last"), dataset="folder", data_root=root)
            c |= dict(results_dir=str(tmp_path / "results"), frame_store=place)
            results[name] = evaluate(EvaluateConfig.from_dict(c))
        assert results["store"][0]["run"] == results["files"][0]["run"] + "-stored"
        features = [found[1].video["pooled"] for found in results.values()]
        cosine = torch.cosine_similarity(*features)
        assert cosine.min() > 0.98 and not torch.equal(*features)

    def test_a_run_goes_on_with_a_moved_store_and_not_from_files(self, small_run, tmp_path):
        out = str(tmp_path / "frames")
        cache(CacheConfig(dataset="folder", root=small_run["data_root"], out=out, workers=0))
        first = TrainConfig.from_dict(small_run | dict(frame_store=out, steps=5))
        train(first)
        moved = shutil.move(out, out + "-moved")
        with pytest.raises(ConfigError, match="frame_store .* is no folder"):
            TrainConfig.from_dict(small_run | dict(frame_store=out, resume=True))
        train(TrainConfig.from_dict(small_run | dict(frame_store=moved, resume=True)))
        with pytest.raises(ConfigError, match="has frame_store: .*set it back"):
            train(TrainConfig.from_dict(small_run | dict(resume=True)))

    def test_memory_and_store_exclude_each_other(self, small_run, tmp_path):
        with pytest.raises(ConfigError, match="choose one"):
            TrainConfig.from_dict(small_run | dict(frame_store=str(tmp_path), cache=True))

    def test_a_folder_without_a_store(self, small_run, tmp_path):
        with pytest.raises(DataError, match="holds no frame store: make one with"):
            train(TrainConfig.from_dict(small_run | dict(frame_store=str(tmp_path))))


@pytest.mark.parametrize("from_store", [False, True], ids=["files", "store"])
def test_each_video_is_decoded_and_encoded_once_an_evaluation(data, whole, monkeypatch, from_store):
    # MSVD has 41 captions a video; here every video gets as many
    pairs = [
        pair._replace(caption=f"{pair.caption} {n}")
        for pair in load_pairs("msrvtt", data, "test")
        for n in range(41)
    ]
    videos = {pair.video_id for pair in pairs}
    opened, encoded = [], []
    open_stored = FrameStore.open

    def count_stored(store, name, path=""):
        opened.append(name)
        return open_stored(store, name, path)

    def count_files(path):
        opened.append(path)
        return open_video(path)

    monkeypatch.setattr(FrameStore, "open", count_stored)
    monkeypatch.setattr("promptswitch_nb.samples.open_video", count_files)
    model = PromptSwitch(tiny_clip(["a", "b"])).drop_captioner()
    features = model.video_features

    def count_encoded(frames):
        encoded.append(len(frames))
        return features(frames)

    monkeypatch.setattr(model, "video_features", count_encoded)
    gallery = GalleryDataset(pairs, model.preprocess, store=whole if from_store else None)
    found = encode_split(model, gallery, batch_size=3)
    assert len(opened) == len(set(opened)) == sum(encoded) == len(videos)
    assert len(found.queries.texts) == len(pairs) == 41 * len(videos)
