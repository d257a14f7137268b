"""Clips of odd, broken, long and real videos: the right windows, frames, times and thumbnails."""

import io
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from promptswitch_nb import video as video_room
from promptswitch_nb import windows as windows_room
from promptswitch_nb.frames import PRESET_VIEWS
from promptswitch_nb.frames import Preprocess
from promptswitch_nb.probe import VideoError
from promptswitch_nb.probe import probe_video
from promptswitch_nb.video import load_frames
from promptswitch_nb.windows import CutFinder
from promptswitch_nb.windows import Windowing
from promptswitch_nb.windows import describe_frame
from promptswitch_nb.windows import read_clips
from promptswitch_nb.writing import write_video

SEEN = Preprocess(image_size=32, test_frames=6, frames_per_chunk=3)
DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="PROMPTSWITCH_TEST_DATA is not set")


@pytest.fixture(autouse=True)
def _by_pyav(monkeypatch):
    """Let `load_frames` read with PyAV too, so that pictures are the same bit for bit."""
    monkeypatch.setattr(video_room, "decord", None)


def scene(seed: int, n: int, height: int = 72, width: int = 128) -> np.ndarray:
    """Make n frames of soft colours, other ones for each seed, that drift a little."""
    rng = np.random.default_rng(seed)
    t, y, x = np.ogrid[:n, :height, :width]
    waves = sum(
        np.sin(a * x / width + b * y / height + c + t / 12)
        for a, b, c in rng.uniform(1, 8, size=(6, 3))
    )
    return ((128 + 18 * waves)[..., None] * rng.uniform(0.3, 1, 3)).astype(np.uint8)


def film(*lengths: int, first: int = 0, **size: int) -> np.ndarray:
    """Join scenes of these numbers of frames."""
    return np.concatenate([scene(first + i, n, **size) for i, n in enumerate(lengths)])


def check_whole(path: Path, preprocess: Preprocess = SEEN) -> None:
    """Compare the only window of a video with what `load_frames` gives."""
    for windowing in (Windowing(), Windowing(seconds=0)):
        reader = read_clips(path, preprocess, windowing)
        (clip,) = reader
        assert torch.equal(clip.frames, load_frames(path, preprocess))
        assert clip.window.first == 0 and clip.window.last == reader.footage.n_frames
        assert clip.window[2:] == (0, reader.footage.duration, 0)
        assert reader.footage.shots == [(0, reader.footage.duration)]


# One window is what load_frames gives -------------------------------------------------------------

ENCODED = [
    ("mp4", {}, "yuv420p"),
    ("mkv", dict(codec="libx264", options={"bf": "3"}), "yuv420p10le"),
    ("avi", {}, "yuv420p"),
    ("ts", {}, "yuv422p"),
    ("webm", dict(codec="libvpx"), "yuv420p"),
    ("mov", dict(codec="prores_ks"), "yuv422p10le"),
    ("mp4", dict(codec="mpeg4"), "yuv420p"),
    ("gif", dict(codec="gif"), "rgb8"),
    ("mkv", dict(codec="ffv1"), "bgr0"),
    ("mkv", dict(codec="ffv1"), "gray"),
]


@pytest.mark.parametrize("suffix, how, pixels", ENCODED)
def test_one_window_is_what_load_frames_gives(suffix, how, pixels, tmp_path):
    path = write_video(tmp_path / f"x.{suffix}", scene(1, 40), fps=10, pix_fmt=pixels, **how)
    check_whole(path)
    for view in PRESET_VIEWS.values():
        check_whole(path, Preprocess(image_size=48, **view))


def test_moving_shapes_are_what_load_frames_gives(few_shapes):
    paths = sorted((few_shapes / "videos").iterdir())
    for path in paths:
        check_whole(path, Preprocess(image_size=48, test_frames=6))
    assert len(paths) > 20


@pytest.mark.parametrize("name", [b"a #%'\"\n b.mp4", b"\xff\xfe.mp4"])
def test_any_name_will_do(name, tmp_path):
    try:
        path = write_video(tmp_path / os.fsdecode(name), scene(1, 12), fps=10)
    except OSError:
        pytest.skip("the disk takes no such name")
    check_whole(path)


def test_one_frame_and_few(tmp_path):
    for n in (1, 2, 5):
        check_whole(write_video(tmp_path / f"{n}.mp4", scene(1, n), fps=10))
    (clip,) = read_clips(tmp_path / "1.mp4", SEEN)
    assert clip.window.end == pytest.approx(0.1) and clip.times.tolist() == [0] * 6


def test_pixels_that_are_not_square(tmp_path):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for picture in scene(1, 20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    check_whole(path)
    (clip,) = read_clips(path, SEEN)
    assert Image.open(io.BytesIO(clip.thumbnail)).size == (256, 72)


# Times --------------------------------------------------------------------------------------------


def remux(source: Path, path: Path, time) -> Path:
    """Copy packets with other times."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in [packet for packet in old.demux(stream) if packet.size]:
            packet.pts = packet.dts = time(packet.pts)
            packet.stream = copy
            new.mux(packet)
    return path


def test_frames_at_irregular_times(tmp_path):
    plain = write_video(tmp_path / "a.mkv", scene(1, 100), fps=10, options={"bf": "0"})
    path = remux(plain, tmp_path / "b.mkv", lambda t: t if t < 3000 else 3 * t - 6000)
    reader = read_clips(path, SEEN, Windowing(seconds=4))
    clips = list(reader)
    times = np.array([t / 10 if t < 30 else 0.3 * t - 6 for t in range(100)])
    for clip in clips:
        first, last, start, end, _ = clip.window
        assert start == pytest.approx(times[first]) and end - start <= 4.4
        assert np.allclose(clip.times, times[SEEN.choose_frames(last - first) + first])
    assert [clip.window.first for clip in clips[:3]] == [0, 20, 34]
    assert reader.footage.duration == pytest.approx(times[-1], abs=0.4)


def test_nothing_new_for_a_while_makes_no_window(tmp_path):
    plain = write_video(tmp_path / "a.mkv", scene(1, 60), fps=10, options={"bf": "0"})
    path = remux(plain, tmp_path / "b.mkv", lambda t: t if t < 3000 else t + 10_000_000)
    windows = [clip.window for clip in read_clips(path, SEEN, Windowing(seconds=2))]
    assert len(windows) < 9 and {w.first for w in windows} >= {0, 10, 20}
    assert {i for w in windows for i in range(w.first, w.last)} == {*range(60)}
    assert all(w.end - w.start < 2.3 for w in windows)


def test_times_that_are_missing_are_counted(tmp_path):
    source = write_video(tmp_path / "a.mp4", film(20, 20), fps=10)
    path = tmp_path / "a.h264"
    with av.open(str(source)) as container, open(path, "wb") as file:
        stream = container.streams.video[0]
        bare = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in container.demux(stream):
            for part in bare.filter(packet if packet.size else None):
                file.write(bytes(part))
    reader = read_clips(path, SEEN)
    clips = list(reader)
    assert [clip.window[:2] for clip in clips] == [(0, 20), (20, 40)]
    assert reader.footage.duration == pytest.approx(4)
    assert np.allclose(clips[1].times, SEEN.choose_frames(20) / 10 + 2)


# Files that are broken ----------------------------------------------------------------------------


def test_a_file_that_ends_in_the_middle(tmp_path):
    data = write_video(tmp_path / "a.mkv", film(60, 60), fps=10).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) * 2 // 3])
    reader = read_clips(path, SEEN)
    clips = list(reader)
    assert [clip.window.first for clip in clips] == [0, 60]
    assert 60 < clips[1].window.last == reader.footage.n_frames < 120


def test_a_count_that_is_in_doubt(tmp_path):
    source = write_video(tmp_path / "a.mp4", scene(1, 60), fps=10, options={"g": "10"})
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][35]
    data[packet.pos : packet.pos + 8] = b"\xff" * 8
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    assert probe_video(path).count_doubt
    check_whole(path)


@pytest.mark.parametrize("content", [b"", b"no video", b"#EXTM3U\nhttp://example.com/a.mp4"])
def test_what_is_no_video_is_an_error_at_once(content, tmp_path):
    (tmp_path / "x.mp4").write_bytes(content)
    for path in (tmp_path / "x.mp4", tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(VideoError) as told:
            read_clips(path, SEEN)
        with pytest.raises(VideoError) as loaded:
            load_frames(path, SEEN)
        assert str(told.value) == str(loaded.value)


# Memory -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_film(tmp_path_factory):
    """Write a film of two minutes, at ten frames a second, with few cuts."""
    lengths = (333, 61, 391, 15, 400)
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(path, film(*lengths, height=36, width=64), fps=10), np.cumsum(lengths)


def off(clip):
    """Tell how many frames the frames of a clip are from those that it should have."""
    first, last = clip.window[:2]
    wanted = SEEN.choose_frames(last - first) + first
    return round(np.abs(clip.times * 10 - wanted).max())


def test_with_enough_memory_all_frames_are_exact(long_film):
    path, ends = long_film
    clips = list(read_clips(path, SEEN))
    assert {clip.window.last for clip in clips} >= {*ends.tolist()}
    assert not any(off(clip) for clip in clips)


@pytest.mark.parametrize("overlap", [0, 0.5, 0.9])
def test_memory_is_bounded_and_frames_are_near(overlap, long_film, monkeypatch):
    path, ends = long_film
    monkeypatch.setattr(windows_room, "_BUDGET", 0)
    reader, most = read_clips(path, SEEN, Windowing(overlap=overlap)), 0
    buffer = reader._buffer
    for clip in reader:
        first, last = clip.window[:2]
        most = max(most, len(buffer.frames))
        assert (clip.times * 10 >= first - 0.1).all() and (clip.times * 10 < last).all()
        assert off(clip) <= buffer.stride / 2
        grid = last not in ends and overlap < 0.9
        assert not off(clip) or not (grid or last == ends[-1])  # those are foreseen
    assert buffer.room == 12 and most <= buffer.room + buffer.reach + 3 * 6 + 1
    assert len(buffer.wanted) < 1200 and len(reader._looks) < 60


def test_irregular_times_are_foreseen(tmp_path, monkeypatch):
    still = scene(1, 1, height=36, width=64).repeat(300, 0)
    plain = write_video(tmp_path / "a.mkv", still, fps=10, options={"bf": "0"})
    path = remux(plain, tmp_path / "b.mkv", lambda t: t + t * t // 20000)
    with av.open(str(path)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
    times = (np.array(stamps) - stamps[0]) / 1000
    monkeypatch.setattr(windows_room, "_BUDGET", 0)
    reader = read_clips(path, SEEN)
    for clip in reader:
        first, last = clip.window[:2]
        assert np.allclose(clip.times, times[SEEN.choose_frames(last - first) + first])
    assert reader._buffer.stride > 4


def test_a_clip_comes_when_its_window_is_complete(long_film):
    reader = read_clips(long_film[0], SEEN, Windowing(find_cuts=False))
    clip = next(reader)
    assert clip.window[:2] == (0, 100) and len(reader._times) <= 100 + 10 + reader._finder.reach + 1
    assert next(reader).window[:2] == (50, 150) and reader.footage is None


def test_whole_videos_are_exact_with_little_memory(long_film, monkeypatch):
    monkeypatch.setattr(windows_room, "_BUDGET", 0)
    (clip,) = read_clips(long_film[0], SEEN, Windowing(seconds=0))
    assert torch.equal(clip.frames, load_frames(long_film[0], SEEN))


# Cuts ---------------------------------------------------------------------------------------------


def cuts_of(path):
    """Find the cuts of a file, as frame numbers."""
    finder, found = CutFinder(probe_video(path).fps), []
    for number, (time, _, frame) in enumerate(windows_room._timed_frames(path, None)):
        if finder.push(describe_frame(frame), time):
            found.append(number - finder.reach + 1)
    return found


def test_windows_without_cuts_are_those_of_the_whole(tmp_path):
    path = write_video(tmp_path / "a.mp4", film(50, 50), fps=10)
    reader = read_clips(path, SEEN, Windowing(find_cuts=False))
    assert [clip.window[:2] for clip in reader] == [(0, 100)]
    assert reader.footage.shots == [(0, reader.footage.duration)]
    assert [clip.window[:2] for clip in read_clips(path, SEEN)] == [(0, 50), (50, 100)]


def test_a_thumbnail_is_not_black(tmp_path):
    frames = scene(1, 60)
    frames[:50] = 0
    (clip,) = read_clips(write_video(tmp_path / "a.mp4", frames, fps=10), SEEN, Windowing(0))
    assert np.asarray(Image.open(io.BytesIO(clip.thumbnail))).mean() > 40
    assert (clip.contrast < 0.02).sum() == 5


def test_cuts_are_those_of_scenedetect(tmp_path):
    scenedetect = pytest.importorskip("scenedetect")
    lengths = (70, 25, 40, 90, 33)
    path = write_video(tmp_path / "a.mp4", film(*lengths, first=20, height=144, width=256), fps=25)
    scenes = scenedetect.detect(str(path), scenedetect.AdaptiveDetector())
    theirs = [start.frame_num for start, _ in scenes[1:]]
    assert cuts_of(path) == theirs == np.cumsum(lengths)[:-1].tolist()


SEEN_BY_EYE = {  # cuts of real clips
    "big_buck_bunny_intro.webm": [283, 376, 551],
    "nasa_telescope_mirror.mp4": [202],
    "tears_of_steel_av1.webm": [44, 295],
    "dancing_man_alpha.webm": [31, 366, 500, 696, 1200, 1438, 1625],
    "bunny_stretching.mp4": [],
    "children_jumping_bed.mp4": [],
    "cups_shell_game.mp4": [],
}


@needs_data
@pytest.mark.parametrize("name", SEEN_BY_EYE)
def test_cuts_of_real_clips(name):
    assert cuts_of(Path(DATA, "data", "clips", name)) == SEEN_BY_EYE[name]


@needs_data
def test_real_clips_that_are_odd():
    clips = Path(DATA, "data", "clips")
    for entry in json.loads((clips / "manifest.json").read_text(encoding="utf-8")):
        path = clips / entry["file"]
        if not entry["frames"]:
            with pytest.raises(VideoError):
                read_clips(path, SEEN)
        elif "edge" in entry["file"]:
            check_whole(path)
