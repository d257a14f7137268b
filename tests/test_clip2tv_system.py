"""CLIP2TV is trained, saved and evaluated as its config says, by either of its rankings."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHORT_RUN
from torch import Tensor

from promptswitch_nb.baselines.clip2tv import CLIP2TV
from promptswitch_nb.baselines.clip2tv import distillation
from promptswitch_nb.baselines.clip2tv import hard_negatives
from promptswitch_nb.baselines.clip2tv import matching_loss
from promptswitch_nb.baselines.clip2tv import may_be_negative
from promptswitch_nb.baselines.clip4clip import CLIP4ClipTransformer
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.fusion import two_stage
from promptswitch_nb.model import load_model
from promptswitch_nb.registry import path_of
from promptswitch_nb.settings import read_yaml
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "systems" / "clip2tv.yaml"
OF_SCALE = ("clip", "pretrained", "dataset", "variant", "max_words")  # of a config, not used here
WORDS = ["a", "red", "ring", "moves", "left"]


@pytest.mark.parametrize("ranking", ["alignment", "matching"])
def test_the_config_trains_and_evaluates(ranking, few_shapes, tmp_path):
    """Of the config, only the sizes, the data and the ranking are changed."""
    values = read_yaml(CONFIG)
    whole = TrainConfig(**values)
    assert whole.model == "clip2tv" and whole.lr_clip == 1e-6 and whole.repeats == "keep"
    about = {key: value for key, value in values.items() if key not in OF_SCALE} | SHORT_RUN
    about |= dict(
        model=path_of(CLIP2TV), data_root=str(few_shapes), output_dir=str(tmp_path / "run")
    )
    about |= dict(n_frames=6, test_frames=6)
    about["model_options"] = values["model_options"] | dict(ranking=ranking)
    run = train(TrainConfig.from_dict(about))
    losses = [row["loss"] for row in read_log(run) if "loss" in row]
    assert len(losses) == 2 and max(losses) < 100
    model = load_model(run / "best")
    assert type(model) is CLIP2TV and model.offline == (ranking == "alignment")
    for rerank in (0, 2):
        config = EvaluateConfig(
            str(run / "best"),
            "shapes",
            str(few_shapes),
            results_dir=str(tmp_path / "results"),
            rerank=rerank,
        )
        metrics = evaluate(config)[0]["metrics"]
        assert metrics["videos"] == 4 and 0 <= metrics["t2v/R@1"] <= 100
    described = json.loads((run / "best" / "config.json").read_text())
    assert "clip2tv" in json.dumps(described["model"])


def features(model: CLIP2TV) -> tuple[dict, dict]:
    """Make the features of three texts and three videos."""
    text = model.text_features(model.tokenize(["a ring", "a red ring moves left", "red"]))
    mask = torch.tensor([[1] * 4, [1, 1, 0, 0], [0, 1, 0, 1]]).bool()
    return text, model.video_features(3 * torch.randn(3, 4, 3, 48, 48), mask)


def model_with_opinions(ranking: str) -> CLIP2TV:
    """Build a model whose matching module tells pairs apart."""
    torch.manual_seed(0)
    model = CLIP2TV(tiny_clip(WORDS), CLIP2TV.config_of("paper", ranking=ranking)).eval()
    with torch.no_grad():
        for p in model.matcher.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.requires_grad_(False)


@pytest.mark.parametrize("ranking", ["alignment", "matching"])
@torch.no_grad()
def test_similarity_is_that_of_the_pair(ranking):
    """Blocks, the batch and the order of texts and videos change nothing, nor do two stages."""
    model = model_with_opinions(ranking)
    text, video = features(model)
    sims = model.similarity(text, video)
    assert sims.shape == (3, 3) and sims.std(dim=1).min() > 1e-3
    for memory_mb in (1e-6, 1):
        assert torch.allclose(model.similarity(text, video, memory_mb=memory_mb), sims, atol=1e-5)
    for i in range(3):
        for j in range(3):
            one, other = ({k: x[[n]] for k, x in f.items()} for n, f in ((i, text), (j, video)))
            assert torch.allclose(model.similarity(one, other), sims[i, j], atol=1e-5)
    ranked = two_stage(text, video, model.similarity, k=2)
    first = (text["pooled"] @ video["pooled"].T).topk(2).indices
    assert torch.equal(
        ranked.argmax(1), first.gather(1, sims.gather(1, first).argmax(1)[:, None])[:, 0]
    )
    pooled = text["pooled"] @ video["pooled"].T
    assert torch.allclose(pooled, sims, atol=1e-6) == model.offline == (ranking == "alignment")


def test_what_is_no_negative_is_never_drawn():
    """Rows 0 and 4 have the same video, rows 1 and 2 the same text; each row has a draw."""
    torch.manual_seed(0)
    text, video = torch.nn.functional.normalize(torch.randn(2, 6, 8), dim=-1)
    text[2], video[4] = text[1], video[0]
    allowed = may_be_negative(text, video)
    excluded = {(i, i) for i in range(6)} | {(0, 4), (4, 0), (1, 2), (2, 1)}
    assert {(i, j) for i in range(6) for j in range(6) if not allowed[i, j]} == excluded
    logits = 20 * torch.eye(6)  # what is excluded is also what is most alike
    logits[0, 4] = logits[4, 0] = logits[1, 2] = logits[2, 1] = 20
    seen = set()
    for _ in range(200):
        texts, videos = hard_negatives(logits, allowed, torch.arange(6))
        assert len(texts) == 12 and texts[:6].tolist() == videos[6:].tolist() == [*range(6)]
        seen |= set(zip(texts.tolist(), videos.tolist()))
    assert seen == {(i, j) for i in range(6) for j in range(6)} - excluded


def test_the_draw_has_the_shares_of_the_alignment():
    logits = torch.zeros(4, 4)
    logits[0, 1], logits[2, 0] = math.log(3), math.log(8)  # texts in rows
    allowed, own = ~torch.eye(4, dtype=torch.bool), torch.tensor([0])
    counts = torch.zeros(2, 4)
    torch.manual_seed(0)
    for _ in range(4000):
        texts, videos = hard_negatives(logits, allowed, own)
        counts[0, videos[0]] += 1  # a video for text 0
        counts[1, texts[1]] += 1  # a text for video 0
    expected = torch.tensor([[0, 0.6, 0.2, 0.2], [0, 0.1, 0.8, 0.1]])
    assert torch.allclose(counts / 4000, expected, atol=0.03)


def test_seeds_repeat_the_losses():
    model = model_with_opinions("alignment")
    text, video = features(model)
    text, video = ({k: x[[0, 1, 2, 1, 0]] for k, x in side.items()} for side in (text, video))

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model.losses(text, video, None)["matching"].item()

    assert loss(1) == loss(1) and len({loss(seed) for seed in range(8)}) > 1


def slow_losses(logits: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Compute the binary loss with the first row as negatives, and the distillation, in loops."""
    true = [math.log1p(math.exp(-teacher[i, i])) for i in range(3)]
    false = [math.log1p(math.exp(teacher[0, j])) for j in (1, 2)]
    kl = 0.0
    for a, b in ((logits, teacher), (logits.T, teacher.T)):
        for row, wise in zip(a.tolist(), b.tolist()):
            p, q = ([math.exp(x) / sum(map(math.exp, r)) for x in r] for r in (row, wise))
            kl += sum(q[j] * (math.log(q[j]) - math.log(p[j])) for j in range(3))
    return sum(true + false) / 5, kl / 6


def test_the_losses_are_their_equations():
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 3, 3, dtype=torch.double)
    binary, divergence = slow_losses(logits, teacher)
    assert matching_loss(teacher.diagonal(), teacher[0, 1:]).item() == pytest.approx(binary)
    assert distillation(logits, teacher).item() == pytest.approx(divergence)


def test_a_batch_without_negatives_has_a_loss():
    model = model_with_opinions("alignment")
    text, video = ({k: x[[1, 1]] for k, x in side.items()} for side in features(model))
    score = model.matcher(text, video)[0, 0].item()
    found = model.losses(text, video, None)["matching"].item()
    assert found == pytest.approx(math.log1p(math.exp(-score)), rel=1e-4)


def test_a_loss_that_is_no_number_is_told_and_not_a_crash():
    model = model_with_opinions("alignment")
    text, video = features(model)
    text = {k: x * math.nan if x.is_floating_point() else x for k, x in text.items()}
    assert math.isnan(model.losses(text, video, None)["loss"])


def test_the_alignment_is_that_of_clip4clip():
    """CLIP2TV's alignment module is CLIP4Clip's sequential transformer."""
    towers = tiny_clip(WORDS)
    ours, theirs = CLIP2TV(towers).eval(), CLIP4ClipTransformer(towers).eval()
    frames = torch.randn(2, 4, 3, 48, 48)
    mask = torch.tensor([[1] * 4, [1, 0, 1, 0]]).bool()
    assert torch.equal(ours.encode_video(frames, mask), theirs.encode_video(frames, mask))
    ids = ours.tokenize(WORDS)
    assert torch.allclose(ours.encode_text(ids), theirs.encode_text(ids), atol=1e-6)


def test_what_it_cannot_be():
    config = CLIP2TV.config_of("paper")
    for name, value in dict(ranking="both", distillation=-0.1).items():
        with pytest.raises(ValueError, match=f"{name} is "):
            replace(config, **{name: value})
