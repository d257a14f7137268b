"""What several tests need: a tiny model to start from, and a tiny data tree."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
import torch

from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.datasets import write_example
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.model import make_system
from promptswitch_nb.shapes import make_shapes


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same numbers in every run, also in the fixtures of a module."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """Undo the real-time priority that SVT-AV1, an encoder, takes for root's whole process.

    What a later test starts, such as a browser, would inherit it and keep all others waiting.
    """
    yield
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class SmallDisk:
    """A disk in memory, for what happens when it is full."""

    def __init__(self, place: Path):
        self.place = place

    def resize(self, size: str) -> None:
        """Give it another size, such as 9m."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.place], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mount a disk of nine megabytes, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    may = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mount")
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", place]
    if not may or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield SmallDisk(place)
    subprocess.run(["umount", "-l", place], check=True)


pytest.register_assert_rewrite("golden", "golden_systems")
WORDS = [
    *("a", "the", "red", "green", "blue", "yellow", "white", "square", "ring", "is", "moves"),
    *("moving", "left", "right", "up", "down", "and", "."),
]
SMALL_CLIP = dict(
    embed_dim=16,
    quick_gelu=True,
    vision_cfg=dict(image_size=16, patch_size=8, layers=2, width=32, head_width=16),
    text_cfg=dict(context_length=12, width=32, heads=2, layers=2),
)


def small_model(*, fusion: str = "mean", **options) -> PromptSwitch:
    """Make a model of the smallest useful size: P = 2, images of 16 × 16 pixels."""
    torch.manual_seed(0)
    spec = dict(encoder="prompt_switch", fusion=fusion)
    without_chance = dict(dropout=0.0) if fusion == "xpool" else {}
    return make_system(
        spec,
        tiny_clip(WORDS, config=SMALL_CLIP),
        options=dict(encoder=dict(frames_per_chunk=2, k=0) | options, fusion=without_chance),
    )


SHORT_RUN = dict(batch_size=4, steps=2, evals_per_epoch=0, eval_every=2, log_every=1, workers=0)
SHORT_RUN |= dict(clip="tiny", pretrained="", dataset="shapes", threads=1, device="cpu")


@pytest.fixture(scope="session")
def few_shapes(tmp_path_factory) -> Path:
    """Make a small set of moving shapes."""
    sizes = dict(n_train=16, n_val=4, n_test=4, n_compose=0, n_stills=2)
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data", **sizes)


def torchrun(*arguments: object, processes: int = 2, seconds: int = 200) -> str:
    """Run a script or a module in several processes; return what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", processes, *arguments]
    done = subprocess.run(map(str, command), capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# For a process of which nothing may be heard: what is going to change in the packages that it uses.
NO_NEWS = dict(PYTHONWARNINGS="ignore::DeprecationWarning,ignore::FutureWarning")


def free_port() -> int:
    """Find a port that nobody uses at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def answers(server: subprocess.Popen, port: int, seconds: float = 120) -> bool:
    """Wait until a server can be reached; say no if it ends before."""
    end = time.monotonic() + seconds
    while server.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return True
        assert time.monotonic() < end, "the server does not answer"
        time.sleep(0.2)
    return False


@contextmanager
def served(command: Callable[[int], list]) -> Iterator[int]:
    """Start a server on a port of this machine, and once more if somebody was faster to take it."""
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(2):
        port = free_port()
        server = subprocess.Popen([*map(str, command(port))], **quiet)
        try:
            if answers(server, port):
                yield port
                return
        finally:
            server.terminate()
            server.wait()
    pytest.fail("the server does not answer: it ends")


def refuses(call, *args: object, contains: str, **options: object) -> None:
    """Assert that a call is refused with a sentence."""
    with pytest.raises(ValueError) as caught:
        call(*args, **options)
    assert contains in str(caught.value)


@pytest.fixture
def small_run(tmp_path: Path) -> dict:
    """Return the settings of a training run of seconds."""
    return small_settings(tmp_path)


def small_settings(folder: Path) -> dict:
    """Return the settings of a training run of seconds, and make what it starts from."""
    write_example("folder", folder / "data")
    small_model().save(folder / "start")
    return dict(
        preset="smoke",
        clip="tiny",
        pretrained=str(folder / "start"),
        dataset="folder",
        data_root=str(folder / "data"),
        output_dir=str(folder / "run"),
        model_options=dict(captioner_layers=1),
        n_frames=2,
        test_frames=2,
        frames_per_chunk=2,
        k=1,
        batch_size=4,
        steps=5,
        eval_every=3,
        checkpoint_every=1,
        log_every=1,
        caption_samples=2,
        lr_clip=3e-3,
        lr_new=3e-3,
        workers=0,
        threads=1,
        device="cpu",
    )


def repeated(source: Path, path: Path, times: int) -> Path:
    """Copy the packets of a file many times over, one after the other."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        packets = [packet for packet in old.demux(stream) if packet.size]
        stamps = [(packet.pts, packet.dts) for packet in packets]
        copy = new.add_stream_from_template(stream)
        for number in range(times):
            shift = number * len(packets) * packets[0].duration
            for packet, (pts, dts) in zip(packets, stamps, strict=True):
                again = av.Packet(bytes(packet))
                again.pts, again.dts, again.time_base = pts + shift, dts + shift, stream.time_base
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                again.duration = packets[0].duration
                new.mux(again)
    return path
