"""TS2-Net's shift, tower, selection and score are those of its released code."""

import re

import torch
from einops import rearrange
from golden import compare
from torch import Tensor

from promptswitch_nb.baselines.shared import SequenceTransformer
from promptswitch_nb.baselines.token_shift import TS2Net
from promptswitch_nb.baselines.token_shift import TS2NetConfig
from promptswitch_nb.baselines.token_shift import shift_tokens
from promptswitch_nb.baselines.token_shift import source_frames
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.system import unit

SETTINGS = {"ViT_width", "ViT_heads", "E", "heads", "layers", "B", "F", "grid"}
SETTINGS |= {"noise_samples", "noise_sigma", "topk", "logit_scale_log"}
NAMES = {  # of the released weights, and ours of the same
    "visual_token_selector.": "",
    "score_predictor.in_conv.0.": "selector.norm.",
    "score_predictor.in_conv.1.": "selector.inner.",
    "score_predictor.out_conv.0.": "selector.mix.",
    "score_predictor.out_conv.2.": "selector.score.",
    "transformerClip.resblocks.": "temporal.blocks.",
    "frame_position_embeddings.weight": "temporal.positions",
    "clip.logit_scale": "clip.model.logit_scale",
}


def our_name(released: str) -> str:
    """Rename a released weight."""
    if released.startswith("visual."):
        return f"clip.model.{released}"
    for theirs, ours in NAMES.items():
        released = released.replace(theirs, ours)
    return released


def build(golden: dict) -> TS2Net:
    """Build a system of the released size, with its weights."""
    sizes, weights = golden["expected"], golden["weights"]
    patch, side = weights["visual.conv1.weight"].shape[-1], golden["inputs"]["images"].shape[-1]
    assert side // patch == sizes["grid"]
    blocks = {int(name.split(".")[3]) for name in weights if name.startswith("visual.transf")}
    config = dict(
        embed_dim=sizes["E"],
        quick_gelu=True,
        vision_cfg=dict(
            image_size=side,
            patch_size=patch,
            layers=len(blocks),
            width=sizes["ViT_width"],
            head_width=sizes["ViT_width"] // sizes["ViT_heads"],
        ),
        text_cfg=dict(context_length=8, width=sizes["E"], heads=sizes["heads"], layers=1),
    )
    config = (
        TS2NetConfig(
            patches=sizes["topk"],
            samples=sizes["noise_samples"],
            sigma=sizes["noise_sigma"],
            official=True,
        ),
        tiny_clip(["a"], config=config),
    )
    model = TS2Net(*reversed(config))
    rows = len(weights["frame_position_embeddings.weight"])
    parts = dict(layers=sizes["layers"], heads=sizes["heads"], rows=rows)
    model.temporal = SequenceTransformer(sizes["E"], **parts)
    own, found = model.state_dict(), {our_name(name): w for name, w in weights.items()}
    towers = {name for name in own if name.startswith("clip.model.")}
    text = {name for name in towers if not name.startswith("clip.model.visual.")}
    assert own.keys() - found.keys() == text - {"clip.model.logit_scale"}
    model.load_state_dict(own | found)
    return model.eval()


def shifts(golden: dict) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Shift what is given, and say where tokens come from."""
    tensors, numbers = {}, {}
    for name, images in golden["inputs"].items():
        if name.startswith("shift.in."):
            frames = rearrange(images, "(b f) l d -> b f l d", f=golden["expected"]["F"])
            sources = source_frames(images.shape[1], official=True)
            tensors[name.replace("in", "out")] = shift_tokens(frames, sources).flatten(0, 1)
    for name in golden["expected"]:
        if found := re.fullmatch(r"shift_(\d+)_source_frame_minus_own", name):
            L = int(found[1])
            sources = source_frames(L, official=True)
            own = torch.arange(3)[:, None].expand(3, L)  # three frames: each token knows its own
            moved = shift_tokens(own[None, ..., None], sources)[0, ..., 0] - own
            kinds = ("first_frame", "source_frame_minus_own", "last_frame")
            numbers |= {f"shift_{L}_{kind}": row.tolist() for kind, row in zip(kinds, moved)}
    return tensors, numbers


def tower(golden: dict, model: TS2Net) -> dict[str, Tensor]:
    """Run the tower with the shift, and without."""
    images = golden["inputs"]["images"]
    videos = rearrange(images, "(b f) c h w -> b f c h w", b=golden["expected"]["B"])
    alone = model.clip.final_norm(model.clip.video_tokens(videos))
    both = {"visual.tokens": model.shifted_tokens(videos), "visual.unshifted_tokens": alone}
    return {name: model.to_joint(x).flatten(0, 1) for name, x in both.items()}


def selection(golden: dict, model: TS2Net) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Select with the given noise, and go back."""
    model.zero_grad()
    inputs = golden["inputs"]
    tokens = inputs["tokens"].clone().requires_grad_()
    kept = model.selector(tokens.flatten(0, 1), inputs["noise"])
    kept = rearrange(kept, "(b f) k e -> b (f k) e", b=len(tokens))
    (kept * inputs["selection.cotangent"]).sum().backward()
    scores = model.selector.scores(inputs["tokens"].flatten(0, 1))
    tensors = {"selection.scores": scores, "selection.tokens": kept}
    norms = {our_name(name): name for name in golden["weights"]}
    grads = {norms[f"selector.{name}"]: p.grad for name, p in model.selector.named_parameters()}
    numbers = {
        f"selection_grad_norms.{name.removeprefix('visual_token_selector.')}": grad.norm().item()
        for name, grad in grads.items()
    }
    return tensors | {"selection.grad.tokens": tokens.grad}, numbers


def score(case: str, golden: dict, model: TS2Net) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Compare texts with videos from their selected tokens, and go back."""
    model.zero_grad()
    inputs, n_frames = golden["inputs"], golden["expected"]["F"]
    mask = inputs[f"video_mask.{case}"].bool()
    text, tokens = (
        x.clone().requires_grad_() for x in (inputs["text"], golden["outputs"]["selection.tokens"])
    )
    each = rearrange(tokens, "b (f k) e -> b f k e", f=n_frames)
    frames, counts = model.across_tokens(each, mask)
    texts = dict(sentence=text[:, 0], pooled=unit(text[:, 0]))
    videos = dict(frames=frames, mask=counts, pooled=model.pool(frames, counts))
    logits = model.similarity(texts, videos) * model.clip.model.logit_scale.exp()
    loss = model.losses(texts, videos, ids=None)["loss"]
    loss.backward()
    raw = dict(frames=inputs["frames"], mask=mask, pooled=videos["pooled"])
    scale = model.clip.model.logit_scale.exp()
    tensors = {f"frame_sim.{case}": model.similarity(texts, raw) * scale, f"{case}.logits": logits}
    tensors[f"{case}.logits_second_return"] = logits
    tensors |= {f"{case}.grad.text": text.grad, f"{case}.grad.selected": tokens.grad}
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    numbers = {
        f"{case}.grad_norms.{name}": grads.pop(our_name(name)).norm().item()
        for name in golden["weights"]
        if our_name(name) in grads
    }
    assert all(not grad.any() for grad in grads.values())
    return tensors, numbers | {f"{case}.loss": loss.item(), f"{case}.two_returns_equal": 0.0}


def check_everything(golden: dict) -> None:
    """Each tensor and each number is compared."""
    model = build(golden)
    tensors, numbers = shifts(golden)
    tensors |= tower(golden, model)
    for more_tensors, more_numbers in (
        selection(golden, model),
        score("full", golden, model),
        score("padded", golden, model),
    ):
        tensors, numbers = tensors | more_tensors, numbers | more_numbers
    compare(golden, tensors, numbers, settings=SETTINGS)


def check_that_the_right_mask_is_another_where_videos_are_padded(golden: dict) -> None:
    """Without padding both masks are one; with it, only the right one leaves padding unheard."""
    right, released = build(golden), build(golden)
    right.config = TS2NetConfig(samples=golden["expected"]["noise_samples"])
    tokens = golden["outputs"]["selection.tokens"].unflatten(1, (golden["expected"]["F"], -1))
    masks = {case: golden["inputs"][f"video_mask.{case}"].bool() for case in ("full", "padded")}
    outputs = [m.across_tokens(tokens, masks["full"])[0] for m in (right, released)]
    torch.testing.assert_close(*outputs)
    seen = masks["padded"].repeat(1, tokens.shape[2]).unflatten(1, (-1, tokens.shape[2]))
    padding = ~masks["padded"][..., None]
    assert (seen & padding).any()  # tokens of padding that the released mask takes for real
    for model, heard in ((right, False), (released, True)):
        before, _ = model.across_tokens(tokens, masks["padded"])
        spoilt = tokens.masked_fill(padding[..., None], 9.0)
        after, _ = model.across_tokens(spoilt, masks["padded"])
        assert torch.allclose(before, after) != heard
    _, counts = right.across_tokens(tokens, masks["padded"])
    assert torch.equal(counts, masks["padded"])
    _, counts = released.across_tokens(tokens, masks["padded"])
    assert torch.equal(counts, seen[..., 0])
