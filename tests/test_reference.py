"""The model gives the numbers of a slow reference that was written from the paper, and so does the released code."""

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
    model = PromptSwitch(
        CLIPTowers(CONFIG), PromptSwitch.config_of(preset, frames_per_chunk=P, k=0)
    ).to(dtype)  # k = 0: no frame is left out at random
    model.load_state_dict(weights(preset == "official"))
    frames, ids = inputs()
    frames = frames.to(dtype)
    out = model(frames[:, :P], ids)
    logits, scale = out["caption_logits"], out.pop("logit_scale")
    out["frames"] = model.encode_frames(frames[:, :P])
    out["contrastive loss"] = losses.contrastive(out["text"], out["video"], logit_scale=scale)[
        "contrastive"
    ]
    out["caption loss"] = caption_term(preset, logits, ids)
    (out["contrastive loss"] + LAMBDA * out["caption loss"]).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused, f"the losses do not reach {unused}"
    out |= summary({name: p.grad.double() for name, p in model.named_parameters()})
    out |= {
        "evaluation frames": model.encode_frames(frames),
        "evaluation video": model.encode_video(frames),
    }
    return {name: tensor.detach().flatten().double() for name, tensor in out.items()}


def caption_term(preset: str, logits: Tensor, ids: Tensor) -> Tensor:
    """Compute a preset's captioning loss with the package."""
    if preset == "official":
        table = losses.frequent_word_weights(logits.shape[-1], torch.tensor(FREQUENT))
        return losses.caption(logits, ids, end=END, weights=table, reduction="token_mean")[
            "caption"
        ]
    corpus, video = (
        torch.tensor(sum(CORPUS, [])),
        torch.tensor([i for i, captions in enumerate(CORPUS) for _ in captions]),
    )
    idf = losses.tfidf(corpus, video, vocab_size=logits.shape[-1], end=END)
    return losses.caption(logits, ids, end=END, weights=losses.tfidf_weights(ids, idf, end=END))[
        "caption"
    ]


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference in each tensor: of features and losses absolute, of gradients relative to the gradient's norm."""
    assert found.keys() == expected.keys()

    def size(name):
        return (
            float(expected[name].norm() if name == "gradient of the cube" else expected[name][0])
            if name.startswith("gradient")
            else 1.0
        )

    return {
        name: float((found[name].flatten() - expected[name]).abs().max()) / size(name)
        for name in expected
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
    gold, expected = (
        load_file(GOLDEN / "tensors.safetensors"),
        json.loads((GOLDEN / "expected.json").read_text()),
    )
    heads = dict(vision=expected["vision"]["heads"], text=expected["text"]["heads"])
    model = PromptSwitch.load_official(
        GOLDEN / "checkpoint.pth", vision_heads=heads["vision"], text_heads=heads["text"]
    )
    w = {
        name: p.detach().double().requires_grad_() for name, p in model.named_parameters()
    }  # of the package, the names of the weights alone
    ids, end, frequent = (
        gold["input_ids"],
        expected["text"]["vocab_size"] - 1,
        gold["frequent_ids"].tolist(),
    )

    def close(found, name, limit=1e-5):
        assert (found - gold[name]).abs().max() < limit * gold[name].abs().max(), name

    out = run(w, heads, gold["video"].double(), ids, official=True)
    for found, name in [
        (out["text"], "text_features"),
        (out["frames"], "frame_features"),
        (out["frames"].mean(1), "video_features"),
        (out["caption_logits"], "caption_logits"),
        (out["text"] @ out["video"].T, "sims"),
    ]:
        close(found, f"out.{name}")

    contrastive = contrastive_loss(out["text"], out["video"], w["clip.model.logit_scale"].exp())
    word_weights = [frequent_weights(row, frequent, end) for row in ids.tolist()]
    caption = expected["caption_loss_mult"] * caption_loss(
        out["caption_logits"], ids, word_weights, end, official=True
    )
    close(contrastive, "out.loss_contrastive")
    close(caption, "out.loss_caption_weighted_times_mult")

    names = {
        "prompt_embedding": "hook.cube.cube",
        "class_embedding": "clip.model.visual.class_embedding",
        "text_projection": "clip.model.text_projection",
    }
    for gradient, name in zip(
        torch.autograd.grad(contrastive + caption, [w[name] for name in names.values()]), names
    ):
        close(gradient.T if name == "text_projection" else gradient, f"out.grad.{name}", 1e-4)

    with torch.no_grad():
        test = run(w, heads, gold["video_test"].double(), ids, official=True)
    close(test["frames"], "out.test.frame_features")
    close(test["frames"].mean(1), "out.test.video_features")
