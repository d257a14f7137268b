"""Run the slow reference on fixed weights and inputs.

`python tests/make_reference.py` stores what it computes in reference.json.
"""

import json
import math
from pathlib import Path

import torch
from reference import Weights
from reference import caption_loss
from reference import contrastive_loss
from reference import frequent_weights
from reference import run
from reference import tfidf_weights
from torch import Tensor

STORED = Path(__file__).with_name("reference.json")
P, HEADS, LAMBDA = 3, dict(vision=4, text=2), 0.5
CONFIG = dict(  # in open_clip's terms
    embed_dim=16,
    quick_gelu=True,
    vision_cfg=dict(image_size=8, patch_size=4, layers=3, width=24, head_width=6),
    text_cfg=dict(context_length=9, vocab_size=20, width=16, heads=2, layers=2),
)
START, END = 18, 19
CORPUS = [  # captions of three videos; a batch has the first of each
    [[START, 3, 5, 7, 3, 2, END, 0, 0], [START, 4, 5, 3, END, 0, 0, 0, 0]],
    [[START, 3, 8, END, END, END, END, END, END]],  # padded as the released code pads
    [[START, 3, 4, 9, 10, 11, 12, 2, END], [START, 13, 3, END, 0, 0, 0, 0, 0]],
]
FREQUENT = [2, 3, START, END]


Shapes = dict[str, tuple[int, ...]]


def linear(name: str, n_out: int, n_in: int) -> Shapes:
    """List the weights of a linear layer."""
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm(name: str, n: int) -> Shapes:
    """List the weights of a LayerNorm."""
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


def attention(name: str, n: int) -> Shapes:
    """List the weights of a multi-head attention."""
    joined = {f"{name}.in_proj_weight": (3 * n, n), f"{name}.in_proj_bias": (3 * n,)}
    return joined | linear(f"{name}.out_proj", n, n)


def clip_shapes() -> Shapes:
    """List the weights of CLIP, under open_clip's names."""
    vision, text, E = CONFIG["vision_cfg"], CONFIG["text_cfg"], CONFIG["embed_dim"]
    D, T, V, patch = vision["width"], text["width"], text["vocab_size"], vision["patch_size"]
    out = {
        "logit_scale": (),
        "token_embedding.weight": (V, T),
        "positional_embedding": (text["context_length"], T),
        "text_projection": (T, E),
        "visual.proj": (D, E),
        "visual.class_embedding": (D,),
        "visual.positional_embedding": ((vision["image_size"] // patch) ** 2 + 1, D),
        "visual.conv1.weight": (D, 3, patch, patch),
    }
    out |= norm("visual.ln_pre", D) | norm("visual.ln_post", D) | norm("ln_final", T)
    towers = [("visual.transformer", D, vision["layers"]), ("transformer", T, text["layers"])]
    for tower, n, layers in towers:
        for block in (f"{tower}.resblocks.{i}" for i in range(layers)):
            out |= norm(f"{block}.ln_1", n) | attention(f"{block}.attn", n)
            out |= norm(f"{block}.ln_2", n)
            out |= linear(f"{block}.mlp.c_fc", 4 * n, n) | linear(f"{block}.mlp.c_proj", n, 4 * n)
    return out


def captioner_shapes(official: bool) -> Shapes:
    """List the weights of the captioning head."""
    text, D = CONFIG["text_cfg"], CONFIG["vision_cfg"]["width"]
    T, V = text["width"], text["vocab_size"]
    out = norm("prenorm", T) | norm("decoder.norm", T) | linear("output", V, T)
    if not official:
        out |= linear("memory_projection", T, D)
    for layer in (f"decoder.layers.{i}" for i in range(2 if official else 3)):
        out |= attention(f"{layer}.self_attn", T) | norm(f"{layer}.norm1", T)
        out |= attention(f"{layer}.multihead_attn", T) | norm(f"{layer}.norm2", T)
        out |= linear(f"{layer}.linear1", 4 * T, T) | linear(f"{layer}.linear2", T, 4 * T)
        out |= norm(f"{layer}.norm3", T)
    return out


def shapes(official: bool) -> Shapes:
    """List the model's weights."""
    D = CONFIG["vision_cfg"]["width"]
    out = {f"clip.model.{name}": shape for name, shape in clip_shapes().items()}
    out |= {"hook.cube.cube": (P, P, D)} | attention("aggregation.attention", D)
    return out | {f"captioner.{name}": shape for name, shape in captioner_shapes(official).items()}


def values(shape: tuple[int, ...], number: int) -> Tensor:
    """Fill a tensor with numbers from -1 to 1 that look random and are the same everywhere.

    `number` tells tensors apart.
    """
    n = torch.arange(math.prod(shape)) + 101 * number
    return torch.sin((n**3 % 10007).double()).reshape(shape)


def fill(name: str, shape: tuple[int, ...], number: int) -> Tensor:
    """Make one weight: nothing is 0 and no LayerNorm is idle."""
    if not shape:
        return values(shape, number) + 2  # logit scale
    if len(shape) == 1:  # LayerNorm weights are about 1, the rest about 0
        return 0.2 * values(shape, number) + name.endswith(".weight")
    return values(shape, number) * math.sqrt(2 / math.prod(shape[1:]))


def weights(official: bool) -> Weights:
    """Make all weights, numbered in the order of their names."""
    named = sorted(shapes(official).items())
    return {name: fill(name, shape, number) for number, (name, shape) in enumerate(named)}


def inputs() -> tuple[Tensor, Tensor]:
    """Make videos of two chunks (B,2P,3,H,W) and captions (B,W); training sees the first chunk."""
    size = CONFIG["vision_cfg"]["image_size"]
    videos = values((len(CORPUS), 2 * P, 3, size, size), 1000)
    return videos, torch.tensor([captions[0] for captions in CORPUS])


def summary(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the norm of each gradient, its part along a fixed direction, and the cube's gradient."""
    out = {}
    for name, gradient in sorted(gradients.items()):
        along = (gradient * values(gradient.shape, 500)).sum()
        out[f"gradient {name}"] = torch.stack([gradient.norm(), along])
    return out | {"gradient of the cube": gradients["hook.cube.cube"]}


def compute(official: bool) -> dict[str, Tensor]:
    """Compute all that is compared.

    A training pass over one chunk with losses and gradients, and an evaluation pass over two.
    """
    w = {name: weight.requires_grad_() for name, weight in weights(official).items()}
    frames, ids = inputs()
    out = run(w, HEADS, frames[:, :P], ids, official)
    word_weights = [
        frequent_weights(row, FREQUENT, END) if official else tfidf_weights(row, CORPUS, END)
        for row in ids.tolist()
    ]
    scale = w["clip.model.logit_scale"].exp()
    out["contrastive loss"] = contrastive_loss(out["text"], out["video"], scale)
    out["caption loss"] = caption_loss(out["caption_logits"], ids, word_weights, END, official)
    loss = out["contrastive loss"] + LAMBDA * out["caption loss"]  # Eq. 6
    out |= summary(dict(zip(w, torch.autograd.grad(loss, list(w.values())))))
    with torch.no_grad():
        test = run(w, HEADS, frames, ids, official)
    out |= {f"evaluation {name}": test[name] for name in ("frames", "video")}
    return {name: tensor.detach() for name, tensor in out.items()}


def main():
    """Write a line of numbers for each tensor, rounded to seven digits."""
    lines = []
    for preset in ("paper", "official"):
        for name, tensor in compute(preset == "official").items():
            numbers = [float(f"{x:.7g}") for x in tensor.flatten().tolist()]
            lines.append(f"{json.dumps(f'{preset}: {name}')}: {json.dumps(numbers)}")
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
