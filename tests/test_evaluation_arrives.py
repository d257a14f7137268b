"""Each setting of an evaluation arrives: its numbers are those made by hand from the settings."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from by_hand import compare_by_hand
from by_hand import make_tree
from by_hand import metrics_by_hand
from by_hand import text_vectors
from by_hand import triples
from by_hand import unit
from by_hand import word_ids
from by_hand import wrong_metrics
from conftest import small_model
from torch import Tensor
from torch.utils.data import DataLoader

from promptswitch_nb.caching import CacheConfig
from promptswitch_nb.caching import cache as make_store
from promptswitch_nb.datasets import Pair
from promptswitch_nb.datasets import write_example
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.evaluate import motion_pair_accuracy
from promptswitch_nb.fusion import TopKFusion
from promptswitch_nb.gallery import Encoded
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.model import load_model
from promptswitch_nb.samples import GalleryDataset

PLAIN = dict(  # how the checkpoints are built and see, and what is asked of them
    checkpoint="mean",
    split="test",
    model="prompt_switch",
    fusion="mean",
    best_frames=3,
    switch=True,
    residual="switched",
    aggregate="prompts",
    aggregate_over="video",
    frame_norm="before_projection",
    captioner_reads="width",
    frames_per_chunk=2,
    test_frames=4,
    test_sampler="uniform",
    transform="whole_frame",
    max_words=None,
)
CASES = dict(  # setting -> its value, and what it changes in PLAIN
    checkpoint=[
        ("other", dict(checkpoint="other")),
        ("top_k", dict(checkpoint="top_k", fusion="top_k")),
        ("crop", dict(checkpoint="crop", transform="crop", test_sampler="official_uniform")),
    ],
    split=[("val", dict(split="val")), ("train", dict(split="train"))],
    n_frames=[(2, dict(test_frames=2)), (8, dict(test_frames=8))],
    preset=[("official", dict(transform="crop", test_sampler="official_uniform"))],
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Make the data, and checkpoints in which no weight is at its start."""
    folder = tmp_path_factory.mktemp("tree")
    make_tree(folder / "data")
    for name in ("mean", "other", "top_k", "crop"):
        model = small_model(fusion="top_k" if name == "top_k" else "mean")
        for p in model.parameters():
            p.data += (0.2 if name == "other" else 0.1) * torch.randn_like(p)
        if name == "crop":
            seen = dict(transform="crop", test_sampler="official_uniform")
            model.preprocess = model.preprocess.changed(**seen)
        model.save(folder / name)
    return folder


@pytest.fixture
def run(tree, tmp_path) -> Callable[..., tuple[dict, Encoded]]:
    """Return a function that evaluates with these settings."""

    def run(**settings) -> tuple[dict, Encoded]:
        values = dict(checkpoint="mean", dataset="folder", data_root=str(tree / "data"))
        values |= dict(results_dir=str(tmp_path / "results")) | settings
        values["checkpoint"] = str(tree / values["checkpoint"])
        return evaluate(EvaluateConfig(**values))

    return run


def by_hand(tree: Path, s: dict) -> tuple[Tensor, dict, list[int]]:
    """Evaluate by hand: similarities, features, and the video of each caption."""
    w = load_model(tree / s["checkpoint"]).state_dict()
    return compare_by_hand(w, s, triples(tree / "data", s["split"]))


def check(found: tuple[dict, Encoded], expected: tuple[Tensor, dict, list[int]]) -> None:
    """See that an evaluation found what was computed by hand."""
    (results, encoded), (sims, video, owners) = found, expected
    torch.testing.assert_close(encoded.video["pooled"], video["pooled"], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded.similarity(), sims, atol=1e-5, rtol=0)
    assert not wrong_metrics(results["metrics"], sims, owners)


def test_the_plain_evaluation(tree, run):
    check(run(), by_hand(tree, PLAIN))


@pytest.mark.parametrize(
    ("name", "value", "changes"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_a_setting_arrives_in_the_numbers(name, value, changes, tree, run):
    expected, (sims, _, _) = by_hand(tree, PLAIN | changes), by_hand(tree, PLAIN)
    assert (expected[0] - sims).abs().max() > 1e-2, "this case shows nothing"
    check(run(**{name: value}), expected)


def test_the_preset_is_seen_through_whatever_the_checkpoint_sees(tree, run):
    check(run(checkpoint="crop", preset="paper"), by_hand(tree, PLAIN | dict(checkpoint="crop")))


@pytest.mark.parametrize("K", [1, 3])
def test_only_the_first_are_ranked_again(K, tree, run):
    sims, video, owners = by_hand(tree, PLAIN | dict(checkpoint="top_k", fusion="top_k"))
    pooled = unit(video["texts"]) @ video["pooled"].T
    scores = pooled - 10
    for row, first in enumerate(pooled.topk(K).indices):
        scores[row, first] = sims[row, first]
    shows = {"t2v/R@1", "t2v/R@5", "t2v/MnR"}  # of videos, the others depend on how far below
    assert shows & {*wrong_metrics(metrics_by_hand(sims, owners), scores, owners)}
    results, _ = run(checkpoint="top_k", rerank=K)
    assert not shows & {*wrong_metrics(results["metrics"], scores, owners)}


def test_the_memory_decides_the_blocks_and_not_the_numbers(tree, run):
    expected = by_hand(tree, PLAIN | dict(checkpoint="top_k", fusion="top_k"))
    blocks, forward = [], TopKFusion.forward

    def note(self, text, video):
        blocks.append((len(text["sentence"]), len(video["frames"])))
        return forward(self, text, video)

    for memory_mb in (256, 0.01):
        with mock.patch.object(TopKFusion, "forward", note):
            found = run(checkpoint="top_k", memory_mb=memory_mb)
        assert (blocks == [(16, 8)]) == (memory_mb == 256)
        blocks.clear()
        check(found, expected)


@pytest.mark.parametrize(("size", "expected"), [(3, [3, 3, 2]), (32, [8])])
def test_as_many_videos_are_encoded_at_a_time(size, expected, run):
    sizes, encode = [], PromptSwitch.video_features

    def note(self, frames, mask=None):
        sizes.append(len(frames))
        return encode(self, frames, mask)

    with mock.patch.object(PromptSwitch, "video_features", note):
        run(batch_size=size)
    assert sizes == expected


def test_the_frames_come_from_the_store_that_is_named(run, tree, tmp_path):
    place, data = str(tmp_path / "frames"), str(tree / "data")
    pytest.importorskip("simplejpeg")
    make_store(CacheConfig(dataset="folder", root=data, out=place, frames=0, workers=0))
    _, from_files = run()
    with mock.patch("av.open", side_effect=AssertionError("a file was read")):
        results, from_store = run(frame_store=place)
    assert results["run"].endswith("-stored") and results["config"]["frame_store"] == place
    vectors = [found.video["pooled"] for found in (from_files, from_store)]
    assert torch.cosine_similarity(*vectors).min() > 0.98


def test_the_processes_that_decode_are_as_many_as_asked(run):
    asked, really = [], DataLoader.__init__

    def note(self, *args, num_workers=0, **options):
        asked.append(num_workers)
        really(self, *args, **options | dict(num_workers=0, multiprocessing_context=None))

    with mock.patch.object(DataLoader, "__init__", note):
        run(workers=3)
    assert asked == [3]


@pytest.mark.parametrize(("variant", "captions"), [("", 2), ("9k", 2), ("full", 4)])
def test_the_dataset_and_its_variant_arrive(variant, captions, run, tmp_path):
    """The test set 1K-A has one caption a video, the full one all of them."""
    root = write_example("msrvtt", tmp_path / "msrvtt")
    results, encoded = run(dataset="msrvtt", data_root=str(root), variant=variant)
    assert results["metrics"]["captions"] == captions and results["metrics"]["videos"] == 2
    assert {pair.video_id for pair in encoded.videos} == {"video10", "video11"}


def test_the_results_are_written_where_and_as_the_settings_say(run, tmp_path):
    results, _ = run(run="mine", results_dir=str(tmp_path / "here"))
    written = json.loads((tmp_path / "here" / "mine.json").read_text())
    assert written["metrics"] == results["metrics"] and written["run"] == "mine"
    run()
    [file] = (tmp_path / "results").iterdir()
    assert file.name.endswith("-mean-folder-test.json")


def test_the_share_of_bad_videos_is_the_setting(run, tmp_path):
    root = make_tree(tmp_path / "data")
    (root / "videos" / "17.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="1 of 8 videos cannot be decoded"):
        run(data_root=str(root), max_bad_share=0.12)
    results, _ = run(data_root=str(root), max_bad_share=0.13)
    assert results["metrics"]["videos"] == 7 and results["bad_videos"].startswith("1 of 8 videos")


# Motion pairs: is the caption nearer, or that of the video played backwards?


def write_shapes(tree: Path, root: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Write two splits of moving shapes with the videos of the tree: video, caption, reverse."""
    root.mkdir()
    (root / "videos").symlink_to(tree / "data" / "videos")
    (root / "shapes.json").write_text("{}")
    splits, opposite = {}, dict(left="right", right="left", up="down", down="up")
    for split, source in dict(test="train", compose="val").items():
        pairs = triples(tree / "data", source)[::2]
        splits[split] = [
            (video, caption, " ".join(opposite.get(word, word) for word in caption.split()))
            for video, _, caption in pairs
        ]
        rows = [dict(video=v, captions=[c], reversed_caption=r) for v, c, r in splits[split]]
        (root / f"captions_{split}.json").write_text(json.dumps(rows))
    return splits


@pytest.mark.parametrize("right", [8, 5, 0])
def test_a_model_that_knows_the_motion_scores_high_and_one_that_inverts_it_low(
    right, tree, tmp_path
):
    """Videos whose vectors point from the caption of their reverse to their own, or back."""
    root, model = tmp_path / "shapes", load_model(tree / "mean").eval()
    rows = write_shapes(tree, root)["test"]
    with torch.no_grad():
        own, reverse = (model.encode_text([row[column] for row in rows]) for column in (1, 2))
    sign = torch.tensor([1.0] * right + [-1.0] * (8 - right))[:, None]
    pairs = [Pair(video_id, "", caption) for video_id, caption, _ in rows]
    gallery = GalleryDataset(pairs, model.preprocess)
    encoded = Encoded(
        model,
        text=dict(pooled=own),
        video=dict(pooled=sign * unit(own - reverse)),
        queries=gallery.queries(),
        videos=gallery.videos,
        failures=[],
    )
    share = right / 8
    assert motion_pair_accuracy(encoded, root) == pytest.approx(
        {"motion pairs": 100 * share, "motion pairs se": 100 * math.sqrt(share * (1 - share) / 8)}
    )


@pytest.mark.parametrize("split", ["test", "compose"])
def test_the_motion_pairs_are_those_of_the_split(split, tree, run, tmp_path):
    root, w = tmp_path / "shapes", load_model(tree / "mean").state_dict()
    rows = write_shapes(tree, root)[split]
    data = [(video, str(root / "videos" / video), caption) for video, caption, _ in rows]
    _, video, _ = compare_by_hand(w, PLAIN, data)
    reverse = unit(text_vectors(w, word_ids(PLAIN, [row[2] for row in rows])))
    margins = ((unit(video["texts"]) - reverse) * video["pooled"]).sum(1)
    share = 100 * (margins > 0).float().mean().item()
    assert share != 50
    results, _ = run(dataset="shapes", data_root=str(root), split=split)
    assert results["metrics"]["motion pairs"] == pytest.approx(share)


ELSEWHERE = dict(  # setting -> the test that shows how it arrives
    dataset=test_the_dataset_and_its_variant_arrive,
    data_root=test_the_dataset_and_its_variant_arrive,
    variant=test_the_dataset_and_its_variant_arrive,
    batch_size=test_as_many_videos_are_encoded_at_a_time,
    frame_store=test_the_frames_come_from_the_store_that_is_named,
    workers=test_the_processes_that_decode_are_as_many_as_asked,
    rerank=test_only_the_first_are_ranked_again,
    memory_mb=test_the_memory_decides_the_blocks_and_not_the_numbers,
    results_dir=test_the_results_are_written_where_and_as_the_settings_say,
    run=test_the_results_are_written_where_and_as_the_settings_say,
    max_bad_share=test_the_share_of_bad_videos_is_the_setting,
)


def test_every_setting_has_its_test():
    assert not CASES.keys() & ELSEWHERE.keys()
    assert CASES.keys() | ELSEWHERE.keys() == {*EvaluateConfig.names()}
