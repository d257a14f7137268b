"""Parts of videos of many kinds: the right frames, the right way up, or an error."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError

from promptswitch_nb.cutting import cut
from promptswitch_nb.frames import Preprocess
from promptswitch_nb.probe import VideoError
from promptswitch_nb.probe import probe_video
from promptswitch_nb.video import PyAVReader
from promptswitch_nb.windows import read_clips
from promptswitch_nb.writing import write_video

DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("SVT_LOG", "0")


def bar(n: int) -> np.ndarray:
    """Make n frames of a bar whose left edge is at the frame's number."""
    frames = np.full((n, 48, 160, 3), 40, np.uint8)
    for t in range(n):
        frames[t, :, t : t + 12] = 230
    return frames


def frames_of(path: Path) -> np.ndarray:
    """Decode all frames of a file, as they are shown."""
    probe = probe_video(path)
    reader = PyAVReader(path, probe._replace(timeline=None))
    return reader.frames(range(len(reader)))


def begins(path: Path) -> float:
    """Read when the first frame of a file is shown, in seconds."""
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).time


def numbers(path: Path) -> list[int]:
    """Read the numbers of all frames off their bars."""
    return [int((picture.mean((0, 2)) > 128).argmax()) for picture in frames_of(path)]


X264 = {"g": "20", "bf": "3", "sc_threshold": "0", "b-adapt": "0"}
X265 = "log-level=none:keyint=20:min-keyint=20:scenecut=0:bframes=3"
VPX = {"g": "20", "cpu-used": "8", "deadline": "realtime", "lag-in-frames": "0"}
COPIED = [  # source, encoder, options, copy
    ("a.mp4", "libx264", X264, "b.mp4"),
    ("a.mkv", "libx264", X264, "b.mkv"),
    ("a.ts", "libx264", X264, "b.mp4"),
    ("a.flv", "libx264", X264, "b.mov"),
    ("open.mp4", "libx265", {"x265-params": X265}, "b.mkv"),
    ("closed.mp4", "libx265", {"x265-params": f"{X265}:open-gop=0"}, "b.mp4"),
    ("a.webm", "libvpx-vp9", VPX, "b.webm"),
    ("a.webm", "libvpx", VPX, "b.mkv"),
    ("a.mp4", "libsvtav1", {"preset": "12", "g": "20"}, "b.mp4"),
]


def encoded(folder: Path, name: str, codec: str, options: dict) -> Path:
    """Write the bar with an encoder, if there is one."""
    try:
        return write_video(folder / name, bar(100), fps=10, codec=codec, options=options)
    except (FFmpegError, ValueError):
        pytest.skip(f"no encoder {codec}")


@pytest.mark.parametrize("name, codec, options, out", COPIED)
def test_a_copy_holds_the_frames_that_it_says(name, codec, options, out, tmp_path):
    source = encoded(tmp_path, name, codec, options)
    stored = frames_of(source)
    for start, end in ((0, 1), (2.0, 3.1), (5.3, 5.4), (7.9, 99)):
        part = cut(source, start, end, tmp_path / out)
        first, last = round(part.start * 10), round(part.end * 10)
        assert not part.exact and first % 20 == 0 and 0 <= start * 10 - first < 20
        assert 0 <= last - min(round(end * 10), 100) <= 4  # frames that others refer to
        assert np.array_equal(frames_of(part.path), stored[first:last])
        assert begins(part.path) < 0.45  # frames that are decoded before others are shown
    assert (part.start, part.end) == (pytest.approx(6), pytest.approx(10))


@pytest.mark.parametrize("name, codec, options, _", COPIED)
def test_an_exact_part_holds_the_span(name, codec, options, _, tmp_path):
    source = encoded(tmp_path, name, codec, options)
    right = numbers(source)
    for start, end in ((0, 1), (2.0, 3.1), (5.3, 5.4), (7.9, 99)):
        part = cut(source, start, end, tmp_path / "b.mp4", exact=True)
        first, last = round(start * 10), min(round(end * 10), 100)
        assert numbers(part.path) == right[first:last]
        assert begins(part.path) < 0.15
        assert part[1:] == (pytest.approx(first / 10), pytest.approx(last / 10), True)


def test_a_window_of_the_index_is_cut_as_it_was_seen(tmp_path):
    source = encoded(tmp_path, "late.mp4", "libx264", X264)
    late = tmp_path / "late.ts"  # whose times do not begin with 0
    with av.open(str(source)) as old, av.open(str(late), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in [packet for packet in old.demux(video=0) if packet.size]:
            packet.pts, packet.dts, packet.stream = packet.pts + 90_000, packet.dts + 90_000, copy
            new.mux(packet)
    reader = read_clips(late, Preprocess(image_size=16, test_frames=2, frames_per_chunk=2))
    (clip,) = reader
    part = cut(late, clip.window.start, clip.window.end, tmp_path / "b.mp4", exact=True)
    assert numbers(part.path) == numbers(late)
    assert part.end == pytest.approx(reader.footage.duration, abs=0.01)


def test_irregular_times_stay_as_they_are(tmp_path):
    path = tmp_path / "irregular.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "10", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 160, 48, "yuv420p"
        for t, picture in enumerate(bar(60)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = t * (1 + t // 30), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    part = cut(path, 2.5, 8.0, tmp_path / "b.mp4", exact=True)
    assert numbers(part.path) == [*range(25, 40)]
    with av.open(str(part.path)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    right = [t * (1 + t // 30) / 10 - 2.5 for t in range(25, 40)]
    assert np.allclose(np.array(times) - times[0], right, atol=2e-3)


def test_pictures_of_odd_size_and_wide_pixels(tmp_path):
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 81, 47, "yuv444p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for picture in bar(20)[:, :47, :81]:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    part = cut(path, 0.5, 1.0, tmp_path / "b.mp4", exact=True)
    frames = frames_of(part.path)
    assert frames.shape == (5, 46, 122, 3)
    assert np.abs(frames.astype(int) - frames_of(path)[5:10, :46, :122]).mean() < 6
    copied = cut(path, 0.5, 1.0, tmp_path / "b.mkv")
    shown = frames_of(copied.path)
    assert np.array_equal(shown, frames_of(path)[: round(copied.end * 10)])


@pytest.mark.parametrize("name", [b"a #%'\"\n b.mp4", b"\xff\xfe.mp4"])
def test_any_name_will_do(name, tmp_path):
    try:
        source = write_video(tmp_path / os.fsdecode(name), bar(20), fps=10)
        (tmp_path / "parts").mkdir()
        out = tmp_path / "parts" / os.fsdecode(name)
        for exact in (False, True):
            assert cut(source, 0, 1, out, exact=exact).path == out
            assert numbers(out) == [*range(10)] or not exact
    except OSError:
        pytest.skip("the disk takes no such name")


def test_the_source_is_never_overwritten(tmp_path):
    source = write_video(tmp_path / "a.mp4", bar(20), fps=10)
    link, hard = tmp_path / "link.mp4", tmp_path / "hard.mp4"
    link.symlink_to(source)
    os.link(source, hard)
    content = source.read_bytes()
    for out in (source, link, hard, tmp_path / "." / "a.mp4"):
        with pytest.raises(ValueError, match="is the video itself"):
            cut(source, 0, 1, out)
    assert source.read_bytes() == content


def test_an_old_part_stays_when_the_new_one_fails(tmp_path):
    source = write_video(tmp_path / "a.mp4", bar(20), fps=10)
    out = cut(source, 0, 1, tmp_path / "b.mp4").path
    content = out.read_bytes()
    with pytest.raises(ValueError, match="has only 2.00"):
        cut(source, 2, 3, out)
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 99)
    with pytest.raises(VideoError):
        cut(tmp_path / "noise.mp4", 0, 1, out)
    assert out.read_bytes() == content
    (tmp_path / "b.webm").write_bytes(content)
    with pytest.raises(ValueError, match="a .webm file cannot hold h264"):
        cut(source, 0, 1, tmp_path / "b.webm")
    assert (tmp_path / "b.webm").read_bytes() == content
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.mp4", "b.mp4", "b.webm", "noise.mp4"}


@pytest.mark.skipif(not DATA, reason="PROMPTSWITCH_TEST_DATA is not set")
def test_a_turned_video_stays_upright(tmp_path):
    source = Path(DATA, "data", "clips", "edge", "rotated_90_3frames.mov")
    right = frames_of(source)
    for exact in (False, True):
        part = cut(source, 0, 1, tmp_path / "b.mov", exact=exact)
        frames = frames_of(part.path)
        assert frames.shape == right.shape
        assert np.abs(frames.astype(int) - right).mean() < (4 if exact else 0.01)


@pytest.mark.skipif(not DATA, reason="PROMPTSWITCH_TEST_DATA is not set")
@pytest.mark.parametrize("name", ["nasa_telescope_mirror.mp4", "big_buck_bunny_intro.webm"])
def test_colours_of_real_clips_stay(name, tmp_path):
    source = Path(DATA, "data", "clips", name)
    reader = PyAVReader(source, probe_video(source))
    part = cut(source, 9.0, 9.2, tmp_path / "b.mkv", exact=True)
    frames = frames_of(part.path)
    first = round(part.start * reader.fps)
    right = reader.frames(range(first, first + len(frames)))
    assert np.abs(frames.astype(int) - right).mean((1, 2, 3)).max() < 4
    assert np.abs((frames.astype(int) - right).mean((0, 1, 2))).max() < 1.5
