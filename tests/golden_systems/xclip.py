"""X-CLIP gives the numbers of the released code: similarities, losses and gradients."""

import pytest
import torch
from golden import compare
from golden import renamed
from torch import Tensor

from promptswitch_nb.baselines.shared import SequenceTransformer
from promptswitch_nb.baselines.xclip import TEMPERATURE
from promptswitch_nb.baselines.xclip import XCLIP
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import CLIPTowers
from promptswitch_nb.losses import contrastive_from_similarity
from promptswitch_nb.system import VideoCLIP
from promptswitch_nb.system import unit

SETTINGS = {"E", "heads", "layers", "Q", "N", "words", "F", "positions", "logit_scale_log"}
HEADS = ("meanP", "seqTransf")
LEAVES = ("sentence", "words", "frames")
NAMES = {  # of the released weights, and ours of the same; "…2" before those it begins like
    "clip.logit_scale": "clip.model.logit_scale",
    "global_mat_weight": "fusion.matrices.whole",
    "local_mat_weight": "fusion.matrices.local",
    "word_logit_weight": "fusion.matrices.words",
    "frame_logit_weight": "fusion.matrices.frames",
    "frame_mat_weight2": "fusion.matrices.frames_last",
    "word_mat_weight2": "fusion.matrices.words_last",
    "word_mat_weight": "fusion.matrices.words_of_frame",
    "frame_mat_weight": "fusion.matrices.frames_of_word",
    "frame_position_embeddings.weight": "temporal.positions",
    "transformerClip.resblocks": "temporal.blocks",
}


def model_of(head: str, golden: dict, *, fresh: bool = False) -> XCLIP:
    """Build a model with the released weights; with fresh matrices if wanted."""
    sizes, weights = golden["expected"], golden["weights"]
    of_text = TINY_CONFIG["text_cfg"] | dict(context_length=sizes["words"])
    clip = CLIPTowers(TINY_CONFIG | dict(embed_dim=sizes["E"], text_cfg=of_text))
    config = XCLIP.config_of("official", temporal_layers=sizes["layers"] * (head == "seqTransf"))
    preprocess = XCLIP(clip).preprocess.changed(
        n_frames=sizes["F"], test_frames=sizes["F"], max_words=sizes["words"]
    )
    model = XCLIP(clip, config, preprocess=preprocess).eval()
    if model.temporal is not None:
        shape = dict(layers=sizes["layers"], heads=sizes["heads"], rows=sizes["positions"])
        model.temporal = SequenceTransformer(sizes["E"], **shape)
    state = {renamed(name, NAMES): weight for name, weight in weights.items()}
    unused = "fusion." if fresh else ()
    state = {k: v for k, v in state.items() if k in model.state_dict() and not k.startswith(unused)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith(("clip.", unused or "clip.")) for name in missing)
    return model


def features(model: XCLIP, given: dict[str, Tensor]) -> tuple[dict, dict]:
    """Make the features of the released inputs, whose words have no mask."""
    frame_mask = given["video_mask"].bool()
    words = given["words"]
    text = dict(pooled=unit(given["sentence"][:, 0]), words=words)
    text["mask"] = torch.ones_like(words[..., 0]).bool()
    with pytest.MonkeyPatch.context() as patch:  # frames as if CLIP had encoded them
        patch.setattr(VideoCLIP, "frame_features", lambda self, frames, mask: (frames, mask))
        return text, model.video_features(given["frames"], frame_mask)


def fine_part(model: XCLIP, text: dict, video: dict) -> Tensor:
    """Compute the share of words with frames: what is left when all other likeness is 0."""
    ready = model.fusion.prepare(video)
    nothing = torch.zeros_like(ready["for_sentence"])
    for_words = ready["for_words"].clone()
    for_words[:, 0] = 0
    ready |= dict(for_sentence=nothing, for_words=for_words)
    return 4 * model.fusion(text, ready)


def run(head: str, golden: dict) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Compute what the released code computed for one head: tensors, and numbers."""
    sizes, inputs, model = golden["expected"], golden["inputs"], model_of(head, golden)
    leaves = {name: inputs[name].clone().requires_grad_() for name in LEAVES}
    text, video = features(model, inputs | leaves)
    scale, pairs = model.clip.model.logit_scale.exp(), min(sizes["Q"], sizes["N"])
    sims = model.similarity(text, video)
    loss = contrastive_from_similarity(sims[:pairs, :pairs], logit_scale=scale)["contrastive"]
    loss.backward()
    with torch.no_grad():
        blocks = model.similarity(text, video, memory_mb=0.01)
        fresh = model_of(head, golden, fresh=True)
        of_fresh = fresh.similarity(*features(fresh, inputs))
        tensors = {f"logits.{head}": blocks * scale, f"identity.logits.{head}": of_fresh * scale}
        tensors["part.frame_word"] = fine_part(model, text, video)
    tensors |= {f"grad.{name}.{head}": leaf.grad for name, leaf in leaves.items()}
    numbers = {f"loss.{head}": loss.item()}
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name in golden["weights"]:
        if renamed(name, NAMES) in grads:
            numbers[f"grad_norms.{head}.{name}"] = grads[renamed(name, NAMES)].norm().item()
    return tensors, numbers


def check_everything(golden: dict) -> None:
    """Each tensor and each number is compared."""
    tensors, numbers = {}, dict(softmax_temperature=TEMPERATURE)
    for head in HEADS:
        more_tensors, more_numbers = run(head, golden)
        tensors, numbers = tensors | more_tensors, numbers | more_numbers
    compare(golden, tensors, numbers, settings=SETTINGS)
    names = {name for name, _ in model_of("seqTransf", golden).named_parameters()}
    assert {renamed(name, NAMES) for name in golden["weights"]} <= names
