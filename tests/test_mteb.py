"""MTEB's own tasks run on our systems, and its absence is said aloud."""

import logging
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model

from promptswitch_nb.frames import Preprocess
from promptswitch_nb.metrics import metrics_from_similarity
from promptswitch_nb.mteb import SystemEncoder
from promptswitch_nb.mteb import SystemSearch
from promptswitch_nb.mteb import TorchcodecReader
from promptswitch_nb.mteb import collate_videos
from promptswitch_nb.mteb import why_not
from promptswitch_nb.video import load_frames
from promptswitch_nb.video import open_video
from promptswitch_nb.video import read_frames
from promptswitch_nb.video import write_video

needs_mteb = pytest.mark.skipif(bool(why_not()), reason=why_not() or "MTEB is there")
CAPTIONS = [
    f"a {colour} square moves {way}" for colour in ("red", "blue") for way in ("left", "up", "down")
]
SETTINGS = dict(batch_size=4, show_progress_bar=False)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    """Write a clip for each caption, of as many lengths and sizes."""
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for n in range(len(CAPTIONS)):
        patches = np.random.default_rng(n).integers(0, 256, (6 + n, 3, 4 + n % 2, 3))
        pictures = patches.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        paths.append(write_video(folder / f"{n}.mp4", pictures, fps=10))
    return paths


@pytest.fixture
def no_network(monkeypatch):
    """Note whoever looks for a machine or connects to one; at the end nobody must have."""
    asked = []

    def refuse(*address, **options):
        asked.append(address)
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not asked


def make_task(name: str, clips: list[Path], monkeypatch, **changes: object) -> object:
    """Let MTEB's own loader make a task of our clips, in place of what it would download."""
    import datasets
    import mteb
    from mteb.tasks.retrieval.eng import msr_vtt

    logging.getLogger("mteb").setLevel(logging.ERROR)
    rows = datasets.Dataset.from_dict(dict(video=list(map(str, clips)), caption=CAPTIONS))
    rows = rows.cast_column("video", datasets.Video())
    monkeypatch.setattr(msr_vtt, "load_dataset", lambda *path, **options: rows)
    task = mteb.get_task(name)
    task.load_data()
    task.dataset["default"]["test"].update(changes)
    return task


def run(system: object, task: object, **options: object) -> dict:
    """Run a task and return its scores."""
    import mteb

    options = dict(cache=None, encode_kwargs=dict(SETTINGS), co2_tracker=False) | options
    result = mteb.evaluate(system, task, **options)
    [scores] = result.task_results[0].scores["test"]
    return scores


def table(model, clips: list[Path]) -> torch.Tensor:
    """Compare all captions with all clips, read one by one by our own readers."""
    with torch.no_grad():
        parts = [model.video_features(model.load_frames(path)[None]) for path in clips]
        video = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return model.similarity(model.text_features(model.tokenize(CAPTIONS)), video)


def expected(scores: torch.Tensor) -> dict[str, float]:
    """Compute MTEB's scores by hand, where row i has its answer in column i."""
    above = (scores > scores.diagonal()[:, None]).sum(1).double()
    credit = 1 / torch.log2(above + 2)
    ours = metrics_from_similarity(scores, torch.arange(len(scores)))
    assert ours["t2v/R@1"] / 100 == pytest.approx((above < 1).double().mean().item())
    return dict(
        recall_at_1=ours["t2v/R@1"] / 100,
        recall_at_5=ours["t2v/R@5"] / 100,
        ndcg_at_10=credit.mean().item(),  # no more than ten can be found here
    )


def picked(scores: dict, like: dict) -> dict[str, float]:
    """Take the scores that are expected."""
    return {name: scores[name] for name in like}


@needs_mteb
@pytest.mark.parametrize("name", ["MSRVTTT2V", "MSRVTTV2T"])
@pytest.mark.parametrize("fusion", ["mean", "xpool"])
@pytest.mark.filterwarnings("ignore:The task")  # is in beta
def test_scores_are_those_of_our_own_readers(name, fusion, clips, monkeypatch, no_network):
    model = small_model(fusion=fusion).eval()
    scores = table(model, clips)
    assert scores.sort(1).values.diff(dim=1).min() > 1e-6  # rounding changes no order
    right = expected(scores if name == "MSRVTTT2V" else scores.T)
    assert 0 < right["ndcg_at_10"] < 1
    task = make_task(name, clips, monkeypatch)
    kinds = [SystemEncoder, SystemSearch] if fusion == "mean" else [SystemSearch]
    for kind in kinds:
        found = run(kind(model, "lab/model"), task)
        assert picked(found, right) == pytest.approx(right, abs=1e-5)


@needs_mteb
@pytest.mark.filterwarnings("ignore:The task")
def test_two_stages_rank_as_by_hand(clips, monkeypatch):
    model = small_model(fusion="xpool").eval()
    with torch.no_grad():
        torch.manual_seed(0)
        for weight in model.fusion.parameters():
            weight += 0.5 * torch.randn(weight.shape)
    scores, task = table(model, clips), make_task("MSRVTTT2V", clips, monkeypatch)
    with torch.no_grad():
        video = torch.cat([model.encode_video(model.load_frames(path)[None]) for path in clips])
        first = model.encode_text(CAPTIONS) @ video.T
    staged = torch.full_like(scores, -10) + first
    best = first.topk(3, dim=1).indices
    staged.scatter_(1, best, scores.gather(1, best))
    assert not torch.equal(staged.argsort(1), scores.argsort(1))
    right = expected(staged)
    found = run(SystemSearch(model, "lab/model", rerank=3), task)
    assert picked(found, right) == pytest.approx(right, abs=1e-5)


@needs_mteb
@pytest.mark.filterwarnings("ignore:The task")
def test_a_query_finds_only_what_it_may(clips, monkeypatch):
    model = small_model(fusion="xpool").eval()
    allowed = {str(n): [str(n), str((n + 1) % 6), str((n + 3) % 6)] for n in range(6)}
    task = make_task("MSRVTTT2V", clips, monkeypatch, top_ranked=allowed)
    scores, masked = table(model, clips), torch.full((6, 6), -10.0)
    for query, names in allowed.items():
        rows = list(map(int, names))
        masked[int(query), rows] = scores[int(query), rows]
    right = expected(masked)
    for rerank in (0, 2):
        found = run(SystemSearch(model, "lab/model", rerank=rerank), task)
        if not rerank:
            assert picked(found, right) == pytest.approx(right, abs=1e-5)
        assert found["recall_at_5"] == 1  # no more than three, the right one among them


@needs_mteb
@pytest.mark.filterwarnings("ignore:The task")
def test_filed_results_are_not_those_of_other_weights(clips, monkeypatch, tmp_path):
    from mteb import ResultCache

    cache, task = ResultCache(tmp_path), make_task("MSRVTTT2V", clips, monkeypatch)
    model = small_model(fusion="xpool").eval()
    first = run(SystemSearch(model, "lab/model"), task, cache=cache)
    with torch.no_grad():
        for weight in model.clip.parameters():
            weight += torch.randn(weight.shape) / 5
    for rerank, scores in ((0, table(model, clips)), (6, table(model, clips))):
        found = run(SystemSearch(model, "lab/model", rerank=rerank), task, cache=cache)
        right = expected(scores)
        assert picked(found, right) == pytest.approx(right, abs=1e-5)
        assert found["ndcg_at_10"] != first["ndcg_at_10"]
    assert len(list(tmp_path.rglob("MSRVTTT2V.json"))) == 3


@needs_mteb
@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.filterwarnings("ignore:The task")
def test_vectors_are_float32_of_unit_length(workers, clips, monkeypatch):
    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    model = small_model().eval()
    task = make_task("MSRVTTT2V", clips, monkeypatch)
    encoder, data = SystemEncoder(model, "lab/model"), task.dataset["default"]["test"]
    for rows, kind in ((data["queries"], PromptType.query), (data["corpus"], PromptType.document)):
        loader = create_dataloader(
            rows, task_metadata=task.metadata, prompt_type=kind, batch_size=4, num_proc=workers
        )
        what = dict(task_metadata=task.metadata, hf_split="test", hf_subset="default")
        vectors = encoder.encode(loader, prompt_type=kind, **what)
        assert (type(vectors), vectors.dtype) == (np.ndarray, np.float32)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    alone = [model.encode_video(model.load_frames(path)[None])[0] for path in clips]
    assert vectors == pytest.approx(torch.stack(alone).detach().numpy(), abs=1e-5)


@needs_mteb
@pytest.mark.filterwarnings("ignore:The task")
def test_a_task_of_two_kinds_at_once_is_refused(clips, monkeypatch):
    task = make_task("MSRVTTT2V", clips, monkeypatch)
    corpus = task.dataset["default"]["test"]["corpus"]
    both = corpus.add_column("text", CAPTIONS)
    task.dataset["default"]["test"]["corpus"] = both
    task.metadata = task.metadata.model_copy(update=dict(category="t2vt"))
    with pytest.raises(ValueError, match="these are text and video"):
        run(SystemEncoder(small_model(), "lab/model"), task)


@needs_mteb
def test_both_are_what_mteb_takes_them_for():
    from mteb.models import CrossEncoderProtocol
    from mteb.models import EncoderProtocol
    from mteb.models import SearchProtocol

    encoder = SystemEncoder(small_model(), "lab/model")
    search = SystemSearch(small_model(fusion="xpool"), "lab/model")
    assert isinstance(encoder, EncoderProtocol) and not isinstance(encoder, SearchProtocol)
    assert isinstance(search, SearchProtocol) and not isinstance(search, EncoderProtocol)
    assert not isinstance(search, CrossEncoderProtocol)


@needs_mteb
@pytest.mark.parametrize("transform", ["whole_frame", "crop"])
@pytest.mark.parametrize("sampler", ["uniform", "official_uniform"])
def test_torchcodec_gives_the_frames_of_our_readers(transform, sampler, clips):
    from torchcodec.decoders import VideoDecoder

    seen = Preprocess(image_size=32, transform=transform, test_sampler=sampler)
    rows = [dict(id=str(n), video=VideoDecoder(path)) for n, path in enumerate(clips)]
    inputs = collate_videos(rows, preprocess=seen)
    assert torch.equal(inputs, torch.stack([load_frames(path, seen) for path in clips]))


@needs_mteb
@pytest.mark.parametrize("sar", ["1/1", "2/1", "1/2", "12/1"])
@pytest.mark.parametrize("turned", [None, [0, -65536, 65536, 0], [-65536, 0, 0, -65536]])
def test_torchcodec_gives_upright_pictures_with_square_pixels(sar, turned, tmp_path):
    from torchcodec.decoders import VideoDecoder

    patches = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 3), dtype=np.uint8)
    pictures = patches.repeat(16, axis=1).repeat(16, axis=2)
    path = write_video(tmp_path / "odd.mp4", pictures, options={"x264-params": f"sar={sar}"})
    if turned:
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 44  # the display matrix
        a, b, c, d = turned
        matrix = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
        data[at : at + 36] = np.array(matrix, dtype=">i4").tobytes()
        path.write_bytes(data)
    ours = open_video(path).frames([4, 1])
    theirs = TorchcodecReader(VideoDecoder(path), "odd").frames(np.array([4, 1]))
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 3  # stretched before or after the turn


@needs_mteb
def test_frames_that_cannot_be_decoded_are_not_counted(tmp_path):
    from torchcodec.decoders import VideoDecoder

    pictures = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
    whole = write_video(tmp_path / "whole.mkv", pictures, fps=10).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    seen, ours = Preprocess(image_size=32), len(open_video(cut))
    assert ours < 60
    rows = [dict(id="0", video=VideoDecoder(cut))]
    assert torch.equal(collate_videos(rows, preprocess=seen)[0], load_frames(cut, seen))
    reader = TorchcodecReader(VideoDecoder(cut, seek_mode="approximate"), "cut")
    assert len(reader) == 60  # this mode believes the header
    frames = read_frames(reader, seen.choose_frames)
    assert ours - 1 <= len(reader) <= ours
    assert np.array_equal(frames, open_video(cut).frames(seen.choose_frames(len(reader))))


def test_without_mteb_it_says_what_to_install():
    code = """
        import sys
        sys.modules["mteb"] = None
        from promptswitch_nb.clip import tiny_clip
        from promptswitch_nb.model import PromptSwitch
        from promptswitch_nb.mteb import SystemEncoder, SystemSearch, why_not
        model = PromptSwitch(tiny_clip())
        for kind in (SystemEncoder, SystemSearch):
            try:
                kind(model, "lab/model")
            except ImportError as error:
                assert str(error) == why_not(), error
                print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert "pip install 'promptswitch_nb[mteb]'" in first and "apt install ffmpeg" in first
