"""A file that crashes or holds up its decoder costs that file, and nothing else."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import refuses
from conftest import small_model

from promptswitch_nb import encode
from promptswitch_nb import gallery
from promptswitch_nb.apart import streams
from promptswitch_nb.catalogue import VideoIndex
from promptswitch_nb.encode import FileClip
from promptswitch_nb.encode import FileEnd
from promptswitch_nb.encode import events_of
from promptswitch_nb.encode import find_videos
from promptswitch_nb.indexing import read_record
from promptswitch_nb.shards import EncodeConfig
from promptswitch_nb.shards import encode_folder
from promptswitch_nb.shards import plan_shards
from promptswitch_nb.video import write_video
from promptswitch_nb.windows import Windowing

SECOND = Windowing(seconds=1.0, overlap=0.0)
CRASH, HANG = "its decoder crashed (exit status {})", "it is not read after {:g} seconds"
PATIENCE = 10.0  # seconds for a window; a good file may wait for a core
FRAGILE = """
import os
import signal
import time
from pathlib import Path
from promptswitch_nb import encode

good, here = encode.read_clips, Path(__file__).parent


class Reader:
    def __init__(self, path, *how):
        self.path, self.reader = path, good(path, *how)

    def __iter__(self):
        for number, clip in enumerate(self.reader):
            with open(here / "counted", "a") as counted:
                counted.write(".")
            yield clip
            if "late" in self.path and number:
                os.abort()

    footage = property(lambda self: self.reader.footage)


def read_clips(path, *how):
    if "crash" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in path:
        (here / "hangs").write_text(str(os.getpid()))
        time.sleep(1000)
    return Reader(path, *how)


def to_send(path, **how):
    encode.read_clips = read_clips
    yield from original(path, **how)


original = encode._to_send
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Write a module whose decoder is fragile, a model, and six videos of three seconds."""
    place = tmp_path_factory.mktemp("fragile")
    (place / "fragile_decoder.py").write_text(FRAGILE)
    small_model().save(place / "model")
    for seed, name in enumerate(["0", "1 crash", "2 hang", "3 late", "4", "5"]):
        pixels = np.random.default_rng(seed).integers(0, 255, (1, 32, 32, 3))
        ramp = np.linspace(0.5, 1, 36)[:, None, None, None]
        write_video(place / "videos" / f"{name}.mp4", (pixels * ramp).astype(np.uint8))
    return place


@pytest.fixture
def fragile(place, monkeypatch) -> Path:
    """Let workers decode with the fragile decoder."""
    monkeypatch.syspath_prepend(place)
    module = __import__("fragile_decoder")
    monkeypatch.setattr(encode, "_to_send", module.to_send)
    (place / "counted").unlink(missing_ok=True)
    return place


def reasons_of(ends: list[FileEnd], *, seconds: float = PATIENCE) -> dict[str, str]:
    """Return the reasons by name, without the megabytes that a file adds to the limit."""
    names = [Path(os.fsdecode(end.path)).stem for end in ends]
    hang = HANG.format(seconds)[:-10]
    return {
        name: hang if end.reason.startswith(hang) else end.reason for name, end in zip(names, ends)
    }


EXPECTED = {"0": "", "4": "", "5": "", "1 crash": CRASH.format(-11)}
EXPECTED |= {"2 hang": HANG.format(PATIENCE)[:-10], "3 late": CRASH.format(-6)}


def run_all(place: Path, workers: int, names: str = "012345") -> tuple[dict[str, str], list[int]]:
    """Decode some files; return the reasons, and the numbers of windows of the broken ones."""
    view = small_model().preprocess
    paths = find_videos(place / "videos")
    paths = [path for path in paths if os.path.basename(os.fsdecode(path))[0] in names]
    events = [*events_of(paths, view, SECOND, workers=workers, seconds=PATIENCE)]
    ends = [event for event in events if isinstance(event, FileEnd)]
    clips = [event for event in events if isinstance(event, FileClip)]
    whole = {end.file for end in ends if not end.reason}
    numbers = [[clip.number for clip in clips if clip.file == file] for file in whole]
    assert numbers == [[0, 1, 2]] * len({*names} & {*"045"})
    assert all(clip.clip.frames.shape == (4, 3, 16, 16) for clip in clips)
    for end in ends:
        status = os.stat(end.path)
        assert (end.size, end.mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert end.is_final == (not end.reason)
    return reasons_of(ends), [end.windows for end in ends if end.reason]


@pytest.mark.parametrize(("workers", "names"), [(1, "14"), (2, "012345"), (8, "134")])
def test_the_run_goes_on(fragile, workers, names):
    """One that dies at once, one that dies late, one that hangs: the others are whole."""
    reasons, windows = run_all(fragile, workers, names)
    assert reasons == {name: reason for name, reason in EXPECTED.items() if name[0] in names}
    assert set(windows) == {0}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_does_so_from_a_process_that_was_forked_or_spawned(fragile, method):
    """What starts the work may be a child itself."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_send_all, args=(theirs, fragile))
    child.start()
    assert ours.poll(300)
    assert ours.recv()[0] == {name: EXPECTED[name] for name in ("1 crash", "4")}
    child.join(20)
    assert child.exitcode == 0


def _send_all(pipe: "multiprocessing.connection.Connection", place: Path) -> None:
    """Decode all in this process's workers, and send what came of it."""
    sys.path.insert(0, str(place))
    torch.set_num_threads(1)
    encode._to_send = __import__("fragile_decoder").to_send
    pipe.send(run_all(place, 1, "14"))


def test_windows_wait_in_memory_up_to_a_bound(fragile, monkeypatch):
    """While nobody takes windows, a worker decodes some in advance, and no more."""
    monkeypatch.setattr(encode, "streams", partial(streams, ahead=2))
    paths = [path for path in find_videos(fragile / "videos") if path[-5:-4] in b"045"]
    events = events_of(paths, small_model().preprocess, SECOND, workers=1)
    next(events)
    time.sleep(3)
    counted = len((fragile / "counted").read_text())
    events.close()
    assert 3 <= counted <= 6 < 9  # one taken, two in the queue, one in hand, some in the pipe
    assert not multiprocessing.active_children()


def test_a_hanging_decoder_ends_with_its_parent(fragile, tmp_path):
    """A run that is killed leaves no process behind, not even one that hangs."""
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = [{str(fragile)!r}, {str(Path(__file__).parent)!r}]
if __name__ == "__main__":
    from test_fragile import *
    encode._to_send = __import__("fragile_decoder").to_send
    path = Path({str(fragile)!r}, "videos", "2 hang.mp4")
    next(events_of([os.fsencode(path)], small_model().preprocess, SECOND, workers=1))
"""
    )
    note = fragile / "hangs"
    note.unlink(missing_ok=True)
    run = subprocess.Popen([sys.executable, script])
    wait_for(lambda: note.exists() and note.read_text(), seconds=100)
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_for(lambda: not is_alive(int(note.read_text())), seconds=20)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, *, seconds: float) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_an_index_lists_them_and_tries_again(fragile, monkeypatch, tmp_path):
    """What was broken off leaves no windows; when the decoder is mended, it is indexed."""
    index = VideoIndex.open(tmp_path / "videos.lance", small_model())
    options = dict(windowing=SECOND, workers=2, quiet=True)
    report = index.add(fragile / "videos", seconds=PATIENCE, **options)
    assert report.added == 3
    assert sorted(Path(path).stem for path, _ in report.skipped) == ["1 crash", "2 hang", "3 late"]
    assert index.store.count("windows") == 9
    monkeypatch.undo()
    report = index.add(fragile / "videos", **options)
    assert (report.added, report.unchanged, report.skipped) == (3, 3, [])
    assert index.store.count("windows") == 18


def test_shards_list_them(fragile):
    """The command's default decodes in other processes; windows of a broken file are left out."""
    where = dict(folder=str(fragile / "videos"), out=str(fragile / "out"))
    where |= dict(window=1.0, overlap=0.0, seconds=PATIENCE)
    config = EncodeConfig(model=str(fragile / "model"), **where)
    shards, _ = plan_shards(config)
    assert [shard.workers for shard in shards] == [encode.spare_cores()]
    assert [shard.workers for shard in plan_shards(replaced(config, ray=True))[0]] == [1]
    assert len(encode_folder(config)) == 3
    (windows,) = (fragile / "out").glob("*.windows.parquet")
    table = pq.read_table(windows).to_pylist()
    assert sorted(Path(os.fsdecode(row["path"])).stem for row in table) == [*"000444555"]
    assert len(plan_shards(config)[0][0].paths) == 3


def replaced(config: EncodeConfig, **changes) -> EncodeConfig:
    """Change settings."""
    return EncodeConfig(**{name: getattr(config, name) for name in config.names()} | changes)


def test_a_default_never_decodes_where_it_encodes(monkeypatch):
    """Even on one core."""
    for cores, workers in [(1, 1), (2, 1), (4, 3), (64, 8)]:
        monkeypatch.setattr(encode, "cores", lambda cores=cores: cores)
        assert encode.spare_cores() == workers


def test_a_processor_is_asked_for_its_precision(monkeypatch):
    """bfloat16 where there are instructions; what cannot be had is refused."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has_it, chosen in [(True, "bf16"), (False, "fp32")]:
        monkeypatch.setattr(gallery, "has_bf16", lambda has_it=has_it: has_it)
        assert gallery.find_precision("auto", cpu) == chosen
    assert gallery.find_precision("auto", cuda) == "fp32"
    assert gallery.find_precision("fp16", cuda) == "fp16"
    refuses(gallery.find_precision, "bf16", cpu, contains="a CPU with AVX512_BF16 or AMX")
    refuses(gallery.find_precision, "fp16", cpu, contains="fp16 needs a GPU: write precision: fp32")


def test_what_a_processor_says(monkeypatch):
    """One of two instruction sets is enough; an old PyTorch knows of none."""
    for known in ({"avx512_bf16": True}, {"amx_bf16": True, "avx512_bf16": False}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        assert gallery.has_bf16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not gallery.has_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not gallery.has_bf16()


def test_an_index_remembers_its_precisions(place, monkeypatch, tmp_path, capsys):
    """Rows are computed in what was asked for, and an index of two kinds says so."""
    monkeypatch.setattr(gallery, "has_bf16", lambda: True)
    paths = find_videos(place / "videos")
    index = VideoIndex.open(tmp_path / "videos.lance", small_model())
    for path, precision in zip(paths, ["bf16", "auto", "fp32"]):
        index.add(os.fsdecode(path), windowing=SECOND, precision=precision)
    told = capsys.readouterr().out
    assert told.count("from now on the index holds vectors computed in bf16 and fp32") == 1
    assert "(bf16)" in told
    assert read_record(index.store)["precision"] == "bf16, fp32"
    assert read_record(index.store)["windowing"]["seconds"] == 1.0
    other = VideoIndex.open(tmp_path / "other.lance", small_model())
    other.add(os.fsdecode(paths[0]), windowing=SECOND, quiet=True)
    ids = [f"{encode.content_hash(paths[0])}:{number}" for number in range(3)]
    vectors = [torch.stack([held._vector_of(name) for name in ids]) for held in (index, other)]
    cosine = torch.cosine_similarity(*vectors)
    assert not torch.equal(*vectors)
    assert cosine.min() > 0.999


def test_shards_of_two_precisions_are_joined_and_told(place, monkeypatch, tmp_path, capsys):
    """Machines of a cluster differ; a second run in another precision is no other model."""
    monkeypatch.setattr(gallery, "has_bf16", lambda: True)
    where = dict(folder=str(place / "videos"), out=str(tmp_path / "out"), workers=0)
    for part, precision in [("1/2", "fp32"), ("2/2", "auto")]:
        encode_folder(
            EncodeConfig(model=str(place / "model"), precision=precision, shard=part, **where)
        )
    told = capsys.readouterr().out
    assert "3 files to encode in fp32 in 1 shard," in told
    assert "3 files to encode in bf16 in 1 shard," in told
    index = VideoIndex.open(tmp_path / "videos.lance", str(place / "model"))
    assert index.add_shards(tmp_path / "out").added == 6
    assert "computed in bf16 and fp32" in capsys.readouterr().out


def test_compiled_blocks_are_put_back(monkeypatch):
    """Blocks are compiled while videos are encoded; a system that cannot is refused."""
    model, asked = small_model(), []
    monkeypatch.setattr(model.clip, "choose_speed", lambda **how: asked.append(how))
    with encode.compiled(model):
        assert asked == [dict(compile=True)]
    with encode.compiled(model, False):
        pass
    assert asked == [dict(compile=True), {}]

    class Other:
        clip = object()

    with pytest.raises(ValueError, match="leave out --compile"), encode.compiled(Other()):
        pass
