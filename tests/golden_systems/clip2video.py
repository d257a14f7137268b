"""CLIP2Video's two blocks give the numbers of the released code."""

from golden import compare
from golden import renamed
from torch import Tensor

from promptswitch_nb.baselines.clip2video import CLIP2Video
from promptswitch_nb.baselines.shared import SequenceTransformer
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.system import unit

SETTINGS = {"E", "heads", "layers", "B", "words", "F", "positions", "K", "center_weight"}
SETTINGS |= {"logit_scale_log"}
NAMES = {  # of the released weights, and ours of the same
    "transformerClip.resblocks.": "head.blocks.",
    "frame2t_attention.resblocks.": "head.of_changes.",
    "actionClip.resblocks.": "head.aligned.",
    "frame_position_embeddings.weight": "head.positions",
    "type_position_embeddings.weight": "head.kinds",
    "trans_layernorm.": "head.norm.",
    "weight_center": "head.centres",
    "emb_center": "head.origins",
    "frame2t_projection": "head.projection",
    "clip.logit_scale": "clip.model.logit_scale",
}
DIFFERENCES = dict(sigmoid_selfA="attention", sigmoid_mlp="projection", default="plain")
ALIGNED = dict(TAB=False, TAB_TDB=True)
LOSSES = dict(sim="global", tab="aligned", total="loss")


def build(golden: dict, **options) -> CLIP2Video:
    """Build the system of the size of the released one, with its weights."""
    sizes = golden["expected"]
    assert sizes["center_weight"] == 0.5
    towers = tiny_clip(["a"], config=TINY_CONFIG | dict(embed_dim=sizes["E"]))
    counts = dict(layers=sizes["layers"], heads=sizes["heads"], centres=sizes["K"])
    model = CLIP2Video(towers, CLIP2Video.config_of("official", **counts | options))
    rows = SequenceTransformer(sizes["E"], rows=sizes["positions"]).positions
    model.head.positions = rows
    weights = {renamed(name, NAMES): weight for name, weight in golden["weights"].items()}
    own = model.state_dict()
    found = {name: weight for name, weight in weights.items() if name in own}
    new = {name for name in own if name.startswith("head.")}
    assert new == {name for name in found if name.startswith("head.")}
    model.load_state_dict(own | found)
    return model.eval()


def temporal(released: str, golden: dict) -> dict[str, Tensor]:
    """Compute what is named `tdb.` of one kind of difference."""
    model, inputs = build(golden, difference=DIFFERENCES[released]), golden["inputs"]
    frames, mask = inputs["frames"], inputs["video_mask"].bool()
    tokens, real = model.head.tokens(frames, mask)
    pooled = model.pool(model.head.read(model.head.blocks, frames, mask), mask)
    scale = model.clip.model.logit_scale.exp()
    return {
        f"tdb.{released}.tokens": tokens,
        f"tdb.{released}.mask": real.long(),
        f"tdb.{released}.logits": scale * unit(inputs["sentence"][:, 0]) @ pooled.T,
    }


def aligned(released: str, golden: dict) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Compute what is named after one kind of alignment: tensors, and numbers."""
    model, inputs = build(golden, aligned_differences=ALIGNED[released]), golden["inputs"]
    leaves = {
        name: inputs[name].clone().requires_grad_() for name in ("sentence", "words", "frames")
    }
    words, mask = inputs["text_mask"].bool(), inputs["video_mask"].bool()
    extended, real = model.head.extended(leaves["frames"], mask)
    pooled_text = model.pooled_text(leaves["sentence"][:, 0], leaves["words"], words)
    text, video = (
        dict(pooled=pooled_text),
        dict(pooled=model.pooled_video(leaves["frames"], mask)[0]),
    )
    terms = model.losses(text, video, ids=None)
    terms["loss"].backward()
    scale, E = model.clip.model.logit_scale.exp(), golden["expected"]["E"]
    sides = dict(video=video["pooled"], text=text["pooled"])
    tensors = {f"tab.{released}.{name}": 2**0.5 * side[:, E:] for name, side in sides.items()}
    tensors |= {
        f"tab.{released}.frames_extended": extended,
        f"tab.{released}.mask_extended": real.float(),
        f"{released}.inference_logits": scale * model.similarity(text, video),
    }
    tensors |= {f"{released}.grad.{name}": leaf.grad for name, leaf in leaves.items()}
    numbers = {f"loss.{released}.{name}": terms[ours].item() for name, ours in LOSSES.items()}
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name in golden["weights"]:
        if renamed(name, NAMES) in grads:
            numbers[f"grad_norms.{released}.{name}"] = grads[renamed(name, NAMES)].norm().item()
    return tensors, numbers


def check_everything(golden: dict) -> None:
    """Each tensor and each number is compared."""
    places, kinds = build(golden).head.labels(golden["expected"]["F"])
    B, numbers = golden["expected"]["B"], {}
    tensors = {"tdb.positions": places.expand(B, -1, -1), "tdb.types": kinds.expand(B, -1, -1)}
    for released in DIFFERENCES:
        tensors |= temporal(released, golden)
    for released in ALIGNED:
        more_tensors, more_numbers = aligned(released, golden)
        tensors, numbers = tensors | more_tensors, numbers | more_numbers
    compare(golden, tensors, numbers, settings=SETTINGS)
