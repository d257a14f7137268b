"""Odd video files: covers, wide pixels, names, playlists, and jumps to key frames."""

import io
import os
import re
import socket
import struct
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.error import FFmpegError
from conftest import repeated
from PIL import Image

from promptswitch_nb import probe as probe_room
from promptswitch_nb import video as video_room
from promptswitch_nb.frames import PRESET_VIEWS
from promptswitch_nb.frames import Preprocess
from promptswitch_nb.frames import sample_indices
from promptswitch_nb.samples import FrameSource
from promptswitch_nb.video import PyAVReader
from promptswitch_nb.video import VideoError
from promptswitch_nb.video import load_frames
from promptswitch_nb.video import open_video
from promptswitch_nb.video import probe_video
from promptswitch_nb.video import write_video

BACKENDS = ("decord", "pyav") if video_room.decord else ("pyav",)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("SVT_LOG", "0")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Read with this library wherever it may."""
    if request.param == "pyav":
        monkeypatch.setattr(video_room, "decord", None)
    return request.param


def moving(n: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Make n frames of a pattern that drifts; neighbours differ much."""
    t, y, x = np.ogrid[:n, :height, :width]
    waves = 127.5 + 127.5 * np.sin(x / 9 + y / 13 + 0.7 * t) * np.cos(x / 17 - 0.3 * t)
    bar = (x - 7 * t) % width < width // 8
    grey = np.where(bar, 255 - waves, waves).astype(np.uint8)
    return grey[..., None].repeat(3, 3)


def plain(path: Path) -> np.ndarray:
    """Decode all frames of the first video stream, on one thread."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = container.decode(video=0)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def remux(source: Path, path: Path, start: int = 0, time=None, dts=None, options=None) -> Path:
    """Copy packets from number `start` on, with other times of showing and of decoding."""
    time = time or int
    dts = dts or time
    with av.open(str(source)) as old, av.open(str(path), "w", options=options or {}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in [packet for packet in old.demux(stream) if packet.size][start:]:
            packet.pts, packet.dts, packet.stream = time(packet.pts), dts(packet.dts), copy
            new.mux(packet)
    return path


# Covers -------------------------------------------------------------------------------------------


def box(kind: bytes, *parts: bytes) -> bytes:
    """Make a box of an mp4 file."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def boxes(data: bytes) -> list[bytes]:
    """Cut the content of an mp4 file, or of a box, into its boxes."""
    found = []
    while data:
        size = struct.unpack(">I", data[:4])[0]
        found.append(data[:size])
        data = data[size:]
    return found


def add_cover(source: Path, path: Path, *, first: bool) -> Path:
    """Copy an mp4 whose index is at its end, with a cover before or after its tracks."""
    Image.new("RGB", (64, 64), (20, 220, 20)).save(path.with_suffix(".jpg"))
    picture = box(b"data", struct.pack(">II", 13, 0), path.with_suffix(".jpg").read_bytes())
    handler = box(b"hdlr", struct.pack(">II4s4sIIB", 0, 0, b"mdir", b"appl", 0, 0, 0))
    items = box(b"ilst", box(b"covr", picture))
    cover = box(b"udta", box(b"meta", bytes(4), handler, items))
    *before, moov = boxes(source.read_bytes())
    assert moov[4:8] == b"moov"
    header, *tracks = [part for part in boxes(moov[8:]) if part[4:8] != b"udta"]
    order = [cover, *tracks] if first else [*tracks, cover]
    path.write_bytes(b"".join(before) + box(b"moov", header, *order))
    return path


@pytest.mark.parametrize("first", [True, False])
def test_a_cover_is_not_the_film(first, backend, tmp_path):
    film = write_video(tmp_path / "plain.mp4", moving(48))
    with_cover = add_cover(film, tmp_path / "cover.mp4", first=first)
    with av.open(str(with_cover)) as container:
        assert len(container.streams.video) == 2
    assert len(open_video(with_cover)) == 48
    assert torch.equal(load_frames(with_cover), load_frames(film))


def test_a_song_with_a_cover_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    song = add_cover(tmp_path / "song.mp4", tmp_path / "cover.mp4", first=False)
    with pytest.raises(VideoError, match="It holds only a picture .cover art., no video stream"):
        load_frames(song)


def test_of_several_films_the_default_is_read(backend, tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            stream.disposition = number * av.stream.Disposition.default.value
        for number, stream in enumerate(streams):
            for picture in moving(20)[:, :: 1 - 2 * number]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    frames = open_video(path).frames(range(20)).astype(int)
    assert np.abs(frames - moving(20)[:, ::-1]).mean() < 8


# Pixels that are not square -----------------------------------------------------------------------


def disc(width: int, height: int, aspect: float) -> np.ndarray:
    """Draw 6 frames of a disc that is round where pixels are `aspect` as wide as high."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) * aspect) ** 2 + (y - height / 2) ** 2 < (height * 0.35) ** 2
    return np.where(inside, 235, 30).astype(np.uint8)[None, ..., None].repeat(6, 0).repeat(3, 3)


def sar(value: object) -> dict:
    """Say to the encoder how wide a pixel is."""
    return {"crf": "10", "x264-params": f"sar={value}"}


@pytest.mark.parametrize("transform", ["whole_frame", "crop"])
@pytest.mark.parametrize("train", [False, True])
def test_a_disc_is_round_whatever_its_pixels(transform, train, backend, tmp_path):
    wide = write_video(tmp_path / "wide.mp4", disc(360, 288, 64 / 45), options=sar("64/45"))
    high = write_video(tmp_path / "high.mp4", disc(512, 144, 1 / 2), options=sar("1/2"))
    square = write_video(tmp_path / "square.mp4", disc(512, 288, 1), options=sar("1/1"))
    seen = Preprocess(image_size=96, transform=transform, n_frames=6, test_frames=6)
    views = {}
    for path in (wide, high, square):
        assert open_video(path).backend == backend
        views[path] = load_frames(path, seen, train=train, rng=np.random.default_rng(3))
        source = FrameSource(seen, train=train)
        assert torch.equal(source(str(path), np.random.default_rng(3)), views[path])
    for path in (wide, high):
        assert (views[path] - views[square]).abs().mean() < 0.05
    bright = views[wide][0, 0] > 0.5
    if (transform, train) == ("crop", False):
        assert abs(int(bright.any(0).sum()) - int(bright.any(1).sum())) <= 1


def test_a_portrait_with_wide_pixels_is_stretched_before_it_is_turned(tmp_path):
    stored = write_video(tmp_path / "stored.mp4", moving(6), options=sar("3/2"))
    data = bytearray(stored.read_bytes())
    at = data.index(b"tkhd") + 44  # the display matrix
    quarter = [0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30]
    data[at : at + 36] = np.array(quarter, dtype=">i4").tobytes()
    (tmp_path / "portrait.mp4").write_bytes(data)
    lying = PyAVReader(stored, probe_video(stored)).frames([0, 5])
    portrait = open_video(tmp_path / "portrait.mp4").frames([0, 5])
    assert lying.shape == (2, 64, 144, 3)
    assert np.array_equal(portrait, np.rot90(lying, 1, axes=(1, 2)))


@pytest.mark.parametrize("nonsense", ["0/1", "12/1", "1/12", "1000/1"])
def test_nonsense_pixels_are_square(nonsense, backend, tmp_path):
    path = write_video(tmp_path / "odd.mp4", moving(6), options=sar(nonsense))
    assert open_video(path).frames([0]).shape == (1, 64, 96, 3)


# Names --------------------------------------------------------------------------------------------

NAMES = [
    "Movie: the end.mp4",
    "http:cat.mp4",
    "file:cat.mp4",
    "concat:a.mp4|b.mp4",
    "subfile,,start,0,end,9,,:cat.mp4",
    "data:cat.mp4",
    "100%d 50%.mp4",
    os.fsdecode(b"caf\xe9.mp4"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_is_that_of_a_file(name, backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("plain.mp4", moving(20))
    assert write_video(name, moving(20)) == Path(name)
    assert sorted(path.name for path in Path().iterdir()) == sorted([name, "plain.mp4"])
    for path in (name, Path(name), Path(name).absolute()):
        reader = open_video(path)
        frames = reader.frames([3, 17])
        assert np.array_equal(frames, open_video("plain.mp4").frames([3, 17]))
        if name.isprintable():
            assert reader.backend == backend


@pytest.mark.parametrize(
    "name",
    [
        *("http://{}/a.mp4", "https://{}/a.mp4", "rtmp://{}/a", "tcp://{}", "file:in.mp4"),
        *("concat:in.mp4|in.mp4", "subfile,,start,0,end,0,,:in.mp4", "data:video/mp4;base64,AAAA"),
    ],
)
def test_an_address_is_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("in.mp4", moving(6))
    with listening() as (server, address):
        with pytest.raises(VideoError, match="by the name of its file, not by an address"):
            load_frames(name.format(address))
        assert not called(server)


class listening:
    """Wait for a call on a port of this machine, inside the `with` block."""

    def __enter__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(0.2)
        return self.server, f"127.0.0.1:{self.server.getsockname()[1]}"

    def __exit__(self, *error):
        self.server.close()


def called(server: socket.socket) -> bool:
    """Tell if somebody called."""
    try:
        server.accept()
    except TimeoutError:
        return False
    return True


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {}\n",
    "film.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{}\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("target", ["http://{}/x.ts", "tcp://{}", "in.ts", "{}/in.ts"])
def test_a_playlist_leads_nowhere(name, known, target, tmp_path, monkeypatch):
    inside = write_video(tmp_path / "in.ts", moving(6))
    if not known:  # the second line of defence
        monkeypatch.setattr(probe_room, "_PLAYLISTS", ())
    with listening() as (server, address):
        place = target.format(address if "//" in target else tmp_path)
        (tmp_path / name).write_text(PLAYLISTS[name].format(place))
        with pytest.raises(VideoError, match="It is a playlist" if known else None):
            load_frames(tmp_path / name)
        assert not called(server)
    assert len(open_video(inside)) == 6


def test_a_message_can_be_printed_whatever_the_name(tmp_path):
    for name in (b"caf\xe9.mp4", b"\xff\xfe.mp4"):
        path = os.path.join(os.fsencode(tmp_path), name)
        for content in (None, b"", b"noise" * 100):
            if content is not None:
                Path(os.fsdecode(path)).write_bytes(content)
            for given in (path, os.fsdecode(path), Path(os.fsdecode(path))):
                with pytest.raises(VideoError) as caught:
                    load_frames(given)
                assert "\\udc" in str(caught.value).encode("utf-8").decode("ascii")
                assert caught.value.path == os.fsdecode(path)
    reader = open_video(write_video(os.fsdecode(path), moving(6)))
    with pytest.raises(VideoError) as caught:
        reader.frames([6])
    str(caught.value).encode("utf-8")
    monkey = reader._pid
    reader._pid = monkey + 1
    with pytest.raises(RuntimeError) as caught:
        reader.frames([0])
    str(caught.value).encode("utf-8")


# What is no video ---------------------------------------------------------------------------------


def make_no_video(kind: str, path: Path) -> None:
    """Put something that is no video at a path."""
    picture = Image.fromarray(moving(1)[0])
    if kind in ("jpeg", "png", "bmp", "tiff", "webp", "ico", "avif"):
        if kind.upper() not in Image.registered_extensions().values():
            pytest.skip(f"Pillow writes no {kind} here")
        picture.save(path, format=kind)
    elif kind == "text":
        path.write_text("a cat jumps\n" * 200)
    elif kind == "zeros":
        path.write_bytes(bytes(5000))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)


@pytest.mark.parametrize("suffix", ["", ".mp4", ".txt", ".jpg", ".png"])
@pytest.mark.parametrize(
    "kind, reason",
    [
        *((kind, "It is a picture, not a video") for kind in ("jpeg", "png", "bmp", "tiff")),
        *((kind, "It is a picture, not a video") for kind in ("webp", "ico", "avif")),
        ("text", "It is a text|It is a picture|Invalid data"),  # by its suffix
        ("zeros", "It is a text|It is a picture|Invalid data"),
        ("empty", "It is empty"),
        ("folder", "It is a folder, not a file"),
        ("pipe", "It is a pipe or a device, not a file"),
    ],
)
def test_what_is_no_video_is_named(kind, reason, suffix, tmp_path):
    if kind == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    make_no_video(kind, tmp_path / f"x{suffix}")
    with pytest.raises(VideoError, match=rf"x{re.escape(suffix)}: ({reason})"):
        load_frames(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("path", ["", "no\0name.mp4", "x" * 5000, "missing.mp4", os.devnull])
def test_a_path_that_leads_nowhere_is_a_video_error(path):
    with pytest.raises(VideoError):
        load_frames(path)


# Jumps to key frames ------------------------------------------------------------------------------

GROUP = 10  # frames from one key frame to the next
CLIP = moving(120)


def x264(extra: str = "") -> dict:
    """Force B-frames and key frames at fixed places."""
    fixed = f"b-adapt=0:scenecut=0:keyint={GROUP}:min-keyint={GROUP}:bframes=3"
    return {"preset": "veryfast", "x264-params": fixed + extra}


X265 = f"log-level=none:keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=3"
HD = "colormatrix=bt709:colorprim=bt709:transfer=bt709"
AV1 = {"preset": "12", "g": str(GROUP)}
VPX = {"g": str(GROUP), "cpu-used": "8", "deadline": "realtime"}
JUMPED = [  # file, encoder, options, pixel format
    ("h264.mp4", "libx264", x264(), "yuv420p"),
    ("h264.mkv", "libx264", x264(), "yuv420p"),
    ("h264.ts", "libx264", x264(), "yuv420p"),
    ("h264.flv", "libx264", x264(), "yuv420p"),
    ("no_b.mp4", "libx264", x264(":bframes=0"), "yuv420p"),
    ("pyramid.mp4", "libx264", x264(":b-pyramid=normal:ref=5"), "yuv420p"),
    ("bt709.mp4", "libx264", x264(f":{HD}"), "yuv420p"),
    ("10bit.mp4", "libx264", x264(), "yuv420p10le"),
    ("hevc_open.mp4", "libx265", {"x265-params": X265}, "yuv420p"),
    ("hevc_closed.mp4", "libx265", {"x265-params": f"{X265}:open-gop=0"}, "yuv420p"),
    ("hevc_radl.mp4", "libx265", {"x265-params": f"{X265}:open-gop=0:radl=2"}, "yuv420p"),
    ("hevc.mkv", "libx265", {"x265-params": X265}, "yuv420p"),
    ("hevc.ts", "libx265", {"x265-params": X265}, "yuv420p"),
    ("av1.mp4", "libsvtav1", AV1, "yuv420p"),
    ("av1.mkv", "libsvtav1", AV1, "yuv420p"),
    ("vp8.webm", "libvpx", VPX, "yuv420p"),
    ("vp9.webm", "libvpx-vp9", VPX, "yuv420p"),
    ("vp9.mp4", "libvpx-vp9", VPX, "yuv420p"),
    ("mjpeg.avi", "mjpeg", {}, "yuvj420p"),
    ("prores.mov", "prores_ks", {}, "yuv422p10le"),
]
FROM_START = [
    ("open_gop.mp4", "libx264", x264(":open-gop=1"), "yuv420p"),
    ("refresh.mp4", "libx264", x264(":intra-refresh=1"), "yuv420p"),
    ("interlaced.mp4", "libx264", x264(":tff=1"), "yuv420p"),
    ("h264.avi", "libx264", x264(), "yuv420p"),
    ("mpeg4.avi", "mpeg4", {"bf": "2", "g": str(GROUP)}, "yuv420p"),
    ("mpeg4.mp4", "mpeg4", {"bf": "2", "g": str(GROUP)}, "yuv420p"),
    ("mpeg2.ts", "mpeg2video", {"bf": "2", "g": str(GROUP)}, "yuv420p"),
    ("palette.gif", "gif", {}, "rgb8"),
]


def encoded(folder: Path, name: str, codec: str, options: dict, pix_fmt: str) -> Path:
    """Write the clip with an encoder, if there is one."""
    try:
        return write_video(
            folder / name, CLIP, fps=25, codec=codec, options=options, pix_fmt=pix_fmt
        )
    except (FFmpegError, ValueError):
        pytest.skip(f"no encoder {codec}")


def jumping(path: Path) -> PyAVReader:
    return PyAVReader(path, probe_video(path))


def check_frames(path: Path, right: np.ndarray) -> None:
    """Ask for many sets of frames; all must be those of a plain decode, bit for bit."""
    rng = np.random.default_rng(0)
    n = len(right)
    few = [rng.permutation(n)[: 1 + i % 5] for i in range(12)]
    for indices in (*few, np.arange(n), [0], [n - 1], [n // 2, 0, n // 2]):
        reader = jumping(path)
        assert len(reader) == n
        assert np.array_equal(reader.frames(indices), right[indices])
        assert reader._timeline is reader.probe.timeline  # it met no surprise


@pytest.mark.parametrize("kind", JUMPED, ids=lambda kind: kind[0])
def test_frames_after_a_jump_are_those_of_a_plain_decode(kind, tmp_path):
    path = encoded(tmp_path, *kind)
    check_frames(path, plain(path))
    reader = jumping(path)
    reader.frames([3, 57, 115])
    assert reader.decoded < 3 * (GROUP + 6)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has none")
def test_writing_a_video_leaves_the_priority_of_the_process(tmp_path):
    before = os.sched_getscheduler(0)
    write_video(
        tmp_path / "a.mp4", np.zeros((9, 64, 64, 3), np.uint8), codec="libsvtav1", options=AV1
    )
    assert os.sched_getscheduler(0) == before  # of root, SVT-AV1 makes it a real-time process


@pytest.mark.parametrize("kind", FROM_START, ids=lambda kind: kind[0])
def test_files_whose_times_or_key_frames_are_not_sure_are_read_from_the_start(kind, tmp_path):
    path = encoded(tmp_path, *kind)
    check_frames(path, plain(path))
    reader = jumping(path)
    reader.frames([len(CLIP) - 1])
    assert reader.decoded >= len(CLIP) - 4


def test_twelve_frames_of_a_long_file_cost_a_dozen_groups(backend, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", CLIP, fps=25, options=x264(f":{HD}"))
    path = repeated(clip, tmp_path / "long.mp4", 25)
    reader = open_video(path)
    indices = sample_indices(len(reader), 12, frames_per_chunk=6)
    frames = reader.frames(indices)
    assert (len(reader), reader.backend) == (3000, "pyav")
    assert reader.decoded < 12 * (GROUP + 6)
    assert np.array_equal(frames, plain(clip)[indices % 120])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_jump_passes_over_the_bytes_between(suffix, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(256, size=(120, 96, 128, 3), dtype=np.uint8)
    clip = write_video(tmp_path / "clip.mp4", noise, fps=25, options=x264(f":{HD}"))
    path = repeated(clip, tmp_path / f"long{suffix}", 5)
    reader, read = jumping(path), []

    class Counted(io.FileIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr(probe_room, "open", lambda path, *_, **__: Counted(path), raising=False)
    frames = reader.frames([599, 3])
    assert np.array_equal(frames, plain(clip)[[119, 3]])
    assert sum(read) < path.stat().st_size / 4


def test_a_disk_that_fails_ends_the_file(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(256, size=(120, 96, 128, 3), dtype=np.uint8)
    path = write_video(tmp_path / "clip.mp4", noise, fps=25, options=x264())
    reader = jumping(path)

    class Failing(io.FileIO):
        left = 300_000  # bytes

        def read(self, size=-1):
            self.left -= size
            if self.left < 0:
                raise OSError(5, "Input/output error")
            return super().read(size)

    monkeypatch.setattr(probe_room, "open", lambda path, *_, **__: Failing(path), raising=False)
    with pytest.raises(VideoError, match="only .* frames can be decoded"):
        reader.frames(range(120))
    assert 20 < len(reader) < 119


@pytest.fixture
def h264(tmp_path):
    return write_video(tmp_path / "source.mp4", CLIP, fps=25, options=x264(f":{HD}"))


@pytest.fixture
def hevc(tmp_path):
    return encoded(tmp_path, "source_hevc.mp4", "libx265", {"x265-params": X265}, "yuv420p")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_variable_frame_rate(suffix, h264, tmp_path):
    path = remux(h264, tmp_path / f"variable{suffix}", time=lambda t: t + max(t, 0) ** 2 // 9000)
    check_frames(path, plain(path))
    assert len(probe_video(path).timeline.starts) == 12


@pytest.mark.parametrize("cut", [3, 10, 25])
def test_an_edit_list_that_hides_the_beginning(cut, h264, tmp_path):
    path = remux(h264, tmp_path / "trimmed.mp4", time=lambda t: t - cut * 512)
    right = plain(path)
    assert len(right) == len(CLIP) - cut
    check_frames(path, right)
    whole_groups = cut >= GROUP  # then packets are missing, and the header counts them
    assert (probe_video(path).timeline is None) == whole_groups


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_times_that_begin_late(suffix, h264, tmp_path):
    path = remux(h264, tmp_path / f"late{suffix}", time=lambda t: t + 90 * 512)
    check_frames(path, plain(path))
    assert probe_video(path).timeline is not None


def test_matroska_without_an_index(h264, tmp_path):
    path = remux(h264, tmp_path / "live.mkv", options={"live": "1"})
    assert b"\x1c\x53\xbb\x6b" not in path.read_bytes()  # Cues
    check_frames(path, plain(path))
    assert len(probe_video(path).timeline.starts) == 12


@pytest.mark.parametrize("source", ["h264", "hevc"])
def test_mp4_without_a_list_of_key_frames(source, request, tmp_path):
    data = request.getfixturevalue(source).read_bytes()
    assert data.count(b"stss") == 1
    path = tmp_path / "no_stss.mp4"
    path.write_bytes(data.replace(b"stss", b"free"))
    check_frames(path, plain(path))
    assert len(probe_video(path).timeline.starts) == 12


def test_times_that_repeat_are_not_trusted(h264, tmp_path):
    late = 8 * 512
    path = remux(h264, tmp_path / "coarse.mkv", time=lambda t: t // 1024 * 1024 + late, dts=int)
    assert probe_video(path).timeline is None
    check_frames(path, plain(path))


def test_hevc_that_begins_in_an_open_group_is_counted(hevc, tmp_path):
    with av.open(str(hevc)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    open_key = next(i for i in keys if packets[i + 2].pts < packets[i].pts)
    path = remux(hevc, tmp_path / "cut.mkv", start=open_key)
    right = plain(path)
    assert len(right) < len(packets) - open_key  # some cannot be decoded
    assert probe_video(path).count_doubt == "it starts between key frames"
    check_frames(path, right)


def test_a_splice_in_hevc_is_counted(hevc, tmp_path):
    """A CRA picture that is named BLA: the frames that refer to the group before are dropped."""
    data = bytearray(hevc.read_bytes())
    with av.open(str(hevc)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.size and packet.is_keyframe]
    unit = keys[4].pos
    while data[unit + 4] >> 1 & 63 != 21:  # CRA
        unit += 4 + int.from_bytes(data[unit : unit + 4], "big")
    data[unit + 4] = 16 << 1 | data[unit + 4] & 1  # BLA
    path = tmp_path / "spliced.mp4"
    path.write_bytes(data)
    right = plain(path)
    assert len(right) < len(CLIP)
    assert probe_video(path).count_doubt == "it is spliced: some frames may be dropped"
    check_frames(path, right)


def test_hidden_pictures_of_vp8_are_no_frames(backend, tmp_path):
    path = encoded(tmp_path, "vp8.webm", "libvpx", VPX, "yuv420p")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for number in (15, 44, 45):
        data[packets[number].pos + 4] &= ~16  # behind the head of the block
    hidden = tmp_path / "hidden.webm"
    hidden.write_bytes(data)
    right = plain(hidden)
    assert len(right) == len(CLIP) - 3
    check_frames(hidden, right)
    assert np.array_equal(open_video(hidden).frames([40, 80]), right[[40, 80]])


def test_a_timeline_that_is_wrong_costs_time_and_not_frames(h264):
    probe, right = probe_video(h264), plain(h264)
    line = probe.timeline
    between = line.times[5] - 1
    for wrong in (
        line._replace(starts=np.arange(120)),
        line._replace(times=np.insert(line.times, 5, between)),
        line._replace(times=np.delete(line.times, 5)),
        line._replace(size=line.size + 1),
        line._replace(pts=line.pts + 1),
        line._replace(target=line.target + 20 * 512),
    ):
        reader = PyAVReader(h264, probe._replace(timeline=wrong))
        assert np.array_equal(reader.frames([7, 57, 96]), right[[7, 57, 96]])
        assert reader._timeline is None


def test_a_damaged_packet_is_read_from_the_start(h264, tmp_path):
    data = bytearray(h264.read_bytes())
    with av.open(str(h264)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][35]
    data[packet.pos : packet.pos + 8] = b"\xff" * 8
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    reader = jumping(path)
    assert (reader.probe.count_doubt, reader.probe.timeline) == (
        "1 of 120 packets are damaged",
        None,
    )
    assert 110 < len(reader) < 120


def test_what_is_read_in_training_and_in_a_test_comes_from_jumps(h264, backend, monkeypatch):
    """The same frames for `load_frames`, for training samples, and from a cache of whole clips."""
    right = plain(h264)
    for preset, view in PRESET_VIEWS.items():
        seen = Preprocess(image_size=48, **view)
        for train in (False, True):
            choose = partial(seen.choose_frames, train=train)
            rngs = [np.random.default_rng(5) for _ in range(4)]
            numbers = choose(len(right), rng=rngs[0])
            generator = torch.Generator().manual_seed(int(rngs[0].integers(2**63)))
            expected = seen.to_input(right[numbers], train=train, generator=generator)
            ways = {
                "load_frames": load_frames(h264, seen, train=train, rng=rngs[1]),
                "samples": FrameSource(seen, train=train)(str(h264), rngs[2]),
                "cache": FrameSource(seen, train=train, cache=True)(str(h264), rngs[3]),
            }
            for way, frames in ways.items():
                assert torch.equal(frames, expected), (preset, train, way)


def test_numbers_of_frames_start_at_0(h264, backend):
    with open_video(h264) as reader, pytest.raises(ValueError, match="numbers from 0 on"):
        reader.frames([-1])
