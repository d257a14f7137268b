"""CLIP-ViP's embeddings, attention, towers and loss are those of its released code."""

import pytest
import torch
from einops import rearrange
from golden import compare
from torch import Tensor

from promptswitch_nb.baselines.video_proxy import CLIPViP
from promptswitch_nb.baselines.video_proxy import CLIPViPConfig
from promptswitch_nb.baselines.video_proxy import proxy_attention
from promptswitch_nb.clip import tiny_clip

SETTINGS = {"ViT_width", "ViT_heads", "layers", "E", "B", "F", "grid", "text_width", "text_heads"}
SETTINGS |= {"proxies_added", "logit_scale_log", "fresh_added_cls_std"}
SETTINGS |= {"fresh_temporal_embedding_is_zero"}
TOWER = {  # parts of released weights' names, and of ours
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
VISION = "vision_model."
NAMES = {
    "logit_scale": "clip.model.logit_scale",
    "text_projection.weight": "clip.model.text_projection",
    "visual_projection.weight": "clip.model.visual.proj",
    "text_model.embeddings.token_embedding.weight": "clip.model.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "clip.model.positional_embedding",
    f"{VISION}embeddings.added_cls": "proxies",
    f"{VISION}embeddings.temporal_embedding": "times",
    f"{VISION}embeddings.class_embedding": "clip.model.visual.class_embedding",
    f"{VISION}embeddings.position_embedding.weight": "clip.model.visual.positional_embedding",
    f"{VISION}embeddings.patch_embedding.weight": "clip.model.visual.conv1.weight",
}
NORMS = {
    f"{VISION}pre_layrnorm": "clip.model.visual.ln_pre",
    f"{VISION}post_layernorm": "clip.model.visual.ln_post",
    "text_model.final_layer_norm": "clip.model.ln_final",
}


def place_of(released: str) -> tuple[str, int | None, bool]:
    """Find a released weight: our name, which third of it, whether it is transposed."""
    if released in NAMES:
        return NAMES[released], None, released.endswith("projection.weight")
    norm, _, kind = released.rpartition(".")
    if norm in NORMS:
        return f"{NORMS[norm]}.{kind}", None, False
    ours = released.replace(VISION, "visual.").replace("text_model.", "")
    for theirs, name in TOWER.items():
        ours = ours.replace(theirs, name)
    for third, letter in enumerate("qkv"):
        for kind in ("weight", "bias"):
            part = f"{letter}_proj.{kind}"
            if ours.endswith(f"attn.{part}"):
                return "clip.model." + ours.replace(part, f"in_proj_{kind}"), third, False
    return f"clip.model.{ours}", None, False


def as_released(released: str, shape: torch.Size, own: dict[str, Tensor]) -> Tensor:
    """Cut out of our tensors what the released name stands for."""
    name, third, transposed = place_of(released)
    tensor = own[name] if third is None else own[name].chunk(3)[third]
    return tensor.T if transposed else tensor.reshape(shape)


def build(golden: dict) -> CLIPViP:
    """Build a model of the released size, with its weights."""
    sizes, weights = golden["expected"], golden["weights"]
    names = dict(vision=f"{VISION}encoder.layers.0.mlp.fc1.bias")
    names |= dict(text="text_model.encoder.layers.0.mlp.fc1.bias")
    words, width = weights["text_model.embeddings.token_embedding.weight"].shape
    depth = {int(name.split(".")[3]) for name in weights if name.startswith("text_model.enc")}
    config = dict(
        embed_dim=sizes["E"],
        quick_gelu=True,
        vision_cfg=dict(
            image_size=golden["inputs"]["video"].shape[-1],
            patch_size=weights[f"{VISION}embeddings.patch_embedding.weight"].shape[-1],
            layers=sizes["layers"],
            width=sizes["ViT_width"],
            head_width=sizes["ViT_width"] // sizes["ViT_heads"],
            mlp_ratio=len(weights[names["vision"]]) / sizes["ViT_width"],
        ),
        text_cfg=dict(
            context_length=len(weights["text_model.embeddings.position_embedding.weight"]),
            width=width,
            heads=sizes["text_heads"],
            layers=len(depth),
            mlp_ratio=len(weights[names["text"]]) / width,
        ),
    )
    towers = tiny_clip([str(i) for i in range(words - 4)], config=config)
    times = weights[f"{VISION}embeddings.temporal_embedding"].shape[1]
    config = CLIPViPConfig(
        proxies=sizes["proxies_added"], times=times, start_scale=sizes["logit_scale_log"]
    )
    model = CLIPViP(towers, config)
    assert model.clip.model.logit_scale.item() == pytest.approx(sizes["logit_scale_log"])
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            as_released(name, weight.shape, own).copy_(weight)
    found = {place_of(name)[0] for name in weights}
    assert found == own.keys()
    return model


def one_sequence(shared: Tensor, patches: Tensor) -> Tensor:
    """Put both groups of tokens into one sequence."""
    return torch.cat([shared, rearrange(patches, "b f l d -> b (f l) d")], dim=1)


def check_everything(golden: dict) -> None:
    """Each tensor and each number is compared."""
    sizes, inputs, weights = (golden[name] for name in ("expected", "inputs", "weights"))
    model = build(golden)
    shared, patches = model.embed(inputs["video"])
    assert patches.shape[:3] == (sizes["B"], sizes["F"], sizes["grid"] ** 2)
    found = {"embeddings": one_sequence(shared, patches)}
    block = model.clip.model.visual.transformer.resblocks[0]
    normed = (block.ln_1(model.clip.model.visual.ln_pre(x)) for x in (shared, patches))
    found["attention.block0"] = one_sequence(*proxy_attention(block.attn, *normed))
    found["vision.last_hidden"] = one_sequence(*model.proxy_tokens(inputs["video"]))
    text = model.text_features(inputs["input_ids"])
    video = model.video_features(inputs["video"])
    found |= dict(text=text["pooled"], video=video["pooled"])
    found["video_other_length"] = model.encode_video(inputs["video_other_length"])
    found["logits_per_text"] = model.similarity(text, video) * model.clip.model.logit_scale.exp()
    loss = model.losses(text, video, inputs["input_ids"])["loss"]
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    numbers = {"M_N_L": [shared.shape[1], *patches.shape[1:3]], "loss": loss.item()}
    for name, weight in weights.items():
        norm = as_released(name, weight.shape, grads).norm().item()
        numbers[f"grad_norms.{name}"] = norm
    compare(golden, found, numbers, settings=SETTINGS)


def check_that_a_fresh_model_starts_as_released(golden: dict) -> None:
    """The preset "official" draws proxies as the released code does."""
    sizes, towers = golden["expected"], tiny_clip(["a"])
    torch.manual_seed(0)
    fresh = CLIPViP(towers, CLIPViP.config_of("official", proxies=1000))
    released = golden["weights"][f"{VISION}embeddings.added_cls"]
    by_chance = 4 / (2 * released.numel()) ** 0.5  # four times the error of a deviation of 1
    assert fresh.proxies.std().item() == pytest.approx(sizes["fresh_added_cls_std"], abs=by_chance)
    assert sizes["fresh_temporal_embedding_is_zero"] and not fresh.times.any()
