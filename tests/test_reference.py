"""The model and the released code give the numbers of a slow reference written from the paper."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from make_reference import CONFIG
from make_reference import CORPUS
from make_reference import END
from make_reference import FREQUENT
from make_reference import LAMBDA
from make_reference import STORED
from make_reference import P
from make_reference import compute
from make_reference import inputs
from make_reference import summary
from make_reference import weights
from reference import Weights
from reference import caption_loss
from reference import contrastive_loss
from reference import frequent_weights
from reference import run
from safetensors.torch import load_file
from torch import Tensor

from promptswitch_nb import losses
from promptswitch_nb.clip import CLIPTowers
from promptswitch_nb.model import PromptSwitch

PRESETS = ["paper", "official"]
GOLDEN = Path(os.environ.get("PROMPTSWITCH_TEST_DATA", "")) / "golden"


@cache
def stored(preset: str) -> dict[str, Tensor]:
    """Read a preset's numbers, flat."""
    numbers = json.loads(STORED.read_text(encoding="utf-8"))
    return {
        name.removeprefix(f"{preset}: "): torch.tensor(row).double()
        for name, row in numbers.items()
        if name.startswith(f"{preset}: ")
    }


@cache
def measured(preset: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compute the same numbers with the package."""
    config = PromptSwitch.config_of(preset, frames_per_chunk=P, k=0)  # k = 0: all frames, always
    model = PromptSwitch(CLIPTowers(CONFIG), config).to(dtype)
    model.load_state_dict(weights(preset == "official"))
    frames, ids = inputs()
    frames = frames.to(dtype)
    out = model(frames[:, :P], ids)
    out["frames"] = model.encode_frames(frames[:, :P])
    contrastive = losses.contrastive(out["text"], out["video"], logit_scale=out.pop("logit_scale"))
    out["contrastive loss"] = contrastive["contrastive"]
    out["caption loss"] = caption_term(preset, out["caption_logits"], ids)
    (out["contrastive loss"] + LAMBDA * out["caption loss"]).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    unused = [name for name, gradient in gradients.items() if gradient is None]
    assert not unused, f"the losses do not reach {unused}"
    out |= summary({name: gradient.double() for name, gradient in gradients.items()})
    out["evaluation frames"] = model.encode_frames(frames)
    out["evaluation video"] = model.encode_video(frames)
    return {name: tensor.detach().flatten().double() for name, tensor in out.items()}


def caption_term(preset: str, logits: Tensor, ids: Tensor) -> Tensor:
    """Compute a preset's captioning loss with the package."""
    V = logits.shape[-1]
    if preset == "official":
        word_weights = losses.frequent_word_weights(V, torch.tensor(FREQUENT))
        reduction = "token_mean"
    else:
        corpus = torch.tensor([caption for captions in CORPUS for caption in captions])
        video = torch.tensor([i for i, captions in enumerate(CORPUS) for _ in captions])
        idf = losses.tfidf(corpus, video, vocab_size=V, end=END)
        word_weights, reduction = losses.tfidf_weights(ids, idf, end=END), "batch_sum"
    terms = losses.caption(logits, ids, end=END, weights=word_weights, reduction=reduction)
    return terms["caption"]


def released_weights(heads: dict[str, int]) -> Weights:
    """Read the released checkpoint; of the package, only the names of the weights are used."""
    model = PromptSwitch.load_official(
        GOLDEN / "checkpoint.pth", vision_heads=heads["vision"], text_heads=heads["text"]
    )
    return {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}


def scale_of(name: str, expected: Tensor) -> float:
    """Return what a difference is measured by: 1, and for a gradient its norm."""
    if not name.startswith("gradient"):
        return 1.0
    return float(expected.norm() if name == "gradient of the cube" else expected[0])


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference in each tensor, of gradients relative to their norms."""
    assert found.keys() == expected.keys()
    return {
        name: float((found[name].flatten() - tensor).abs().max()) / scale_of(name, tensor)
        for name, tensor in expected.items()
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-6)], ids=["float32", "float64"]
)
def test_model_gives_the_stored_numbers(preset, dtype, limit):
    for name, difference in differences(measured(preset, dtype), stored(preset)).items():
        assert difference < (10 * limit if name.startswith("gradient") else limit), name


@pytest.mark.parametrize("preset", PRESETS)
def test_reference_gives_the_stored_numbers(preset):
    for name, difference in differences(compute(preset == "official"), stored(preset)).items():
        assert difference < 2e-6, (
            f"{name}: if the reference was changed on purpose, run tests/make_reference.py"
        )


def test_presets_differ():
    paper, official = map(stored, PRESETS)
    for name in ("frames", "video", "evaluation frames", "evaluation video", "caption_logits"):
        assert (paper[name] - official[name]).abs().max() > 1e-2, name


@pytest.mark.skipif(
    not (GOLDEN / "expected.json").exists(),
    reason="PROMPTSWITCH_TEST_DATA names no folder with the released code's numbers",
)
def test_reference_gives_the_released_numbers():
    gold = load_file(GOLDEN / "tensors.safetensors")
    sizes = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
    heads = dict(vision=sizes["vision"]["heads"], text=sizes["text"]["heads"])
    w = released_weights(heads)
    ids, end = gold["input_ids"], sizes["text"]["vocab_size"] - 1

    def close(found, name, limit=1e-5):
        expected = gold[f"out.{name}"]
        assert (found - expected).abs().max() < limit * expected.abs().max(), name

    out = run(w, heads, gold["video"].double(), ids, official=True)
    close(out["text"], "text_features")
    close(out["frames"], "frame_features")
    close(out["frames"].mean(1), "video_features")
    close(out["caption_logits"], "caption_logits")
    close(out["text"] @ out["video"].T, "sims")

    word_weights = [
        frequent_weights(row, gold["frequent_ids"].tolist(), end) for row in ids.tolist()
    ]
    contrastive = contrastive_loss(out["text"], out["video"], w["clip.model.logit_scale"].exp())
    caption = caption_loss(out["caption_logits"], ids, word_weights, end, official=True)
    caption = sizes["caption_loss_mult"] * caption
    close(contrastive, "loss_contrastive")
    close(caption, "loss_caption_weighted_times_mult")

    names = ["hook.cube.cube", "clip.model.visual.class_embedding", "clip.model.text_projection"]
    cube, cls, projection = torch.autograd.grad(contrastive + caption, [w[name] for name in names])
    close(cube, "grad.prompt_embedding", 1e-4)
    close(cls, "grad.class_embedding", 1e-4)
    close(projection.T, "grad.text_projection", 1e-4)

    with torch.no_grad():
        test = run(w, heads, gold["video_test"].double(), ids, official=True)
    close(test["frames"], "test.frame_features")
    close(test["frames"].mean(1), "test.video_features")
