"""DRL gives the numbers of the released code: similarities, losses, gradients of all its forms."""

import math

import pytest
import torch
from golden import compare
from torch import Tensor

from promptswitch_nb.baselines.drl import DRL
from promptswitch_nb.baselines.shared import SequenceTransformer
from promptswitch_nb.baselines.shared import TightConfig
from promptswitch_nb.baselines.shared import TightFusion
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import CLIPTowers
from promptswitch_nb.system import VideoCLIP
from promptswitch_nb.system import unit

SETTINGS = {"E", "heads", "layers", "B", "words", "F", "positions", "logit_scale_log"}
SETTINGS |= {"cdcr_alpha1", "cdcr_alpha2", "cdcr_lambda"}
RECIPE = ("interaction", "wti_arch", "cdcr", "agg")  # of a case


def named(name: str, case: dict) -> str | None:
    """Give the name that a released weight has in the model of a case; None: it has none there."""
    layers = case["wti_arch"]
    parts = {"clip.logit_scale": "clip.model.logit_scale"}
    if case["agg"] == "seqTransf":
        parts |= {"frame_position_embeddings.weight": "temporal.positions"}
        parts |= {"transformerClip.resblocks": "temporal.blocks"}
    if layers:
        parts |= {
            f"weight_fc.arch{layers}_{side}": f"{ours}_weights.scores" + ".0" * (layers == 1)
            for side, ours in dict(text="word", video="frame").items()
        }
    if case["interaction"] == "xti":
        parts |= {"cross.embeddings.position_embeddings.weight": "fusion.transformer.positions"}
        parts |= {"cross.transformer.resblocks": "fusion.transformer.blocks"}
        parts |= {"cross.pooler.ln_pool": "fusion.norm", "cross.pooler.dense": "fusion.dense"}
        parts |= {"similarity_dense": "fusion.score"}
    for theirs, ours in parts.items():
        if name == theirs or name.startswith(theirs + "."):
            return ours + name.removeprefix(theirs)
    return None


def is_unseen_bias(name: str, case: dict) -> bool:
    """Tell a bias that a softmax does not see, of the last layer of a network that weighs."""
    last = f"scores.{2 * ((case['wti_arch'] or 0) - 1)}.bias"
    return (named(name, case) or "").endswith(last)


def model_of(case: dict, golden: dict) -> DRL:
    """Build the model of a case with the released weights."""
    sizes, weights = golden["expected"], golden["weights"]
    clip = CLIPTowers(TINY_CONFIG | dict(embed_dim=sizes["E"]))
    model = DRL(
        clip,
        DRL.config_of(
            "official",
            interaction=case["interaction"],
            layers=case["wti_arch"] or 1,
            temporal_layers=sizes["layers"] if case["agg"] == "seqTransf" else 0,
            cdcr=sizes["cdcr_lambda"] if case["cdcr"] else 0.0,
            on_diagonal=sizes["cdcr_alpha1"],
            off_diagonal=sizes["cdcr_alpha2"],
        ),
    ).eval()
    shape = dict(layers=sizes["layers"], heads=sizes["heads"], rows=sizes["positions"])
    if model.temporal is not None:
        model.temporal = SequenceTransformer(sizes["E"], **shape)
    if case["interaction"] == "xti":
        model.fusion = TightFusion(sizes["E"], TightConfig(**shape)).eval()
    state = {named(name, case): w for name, w in weights.items() if not is_unseen_bias(name, case)}
    state.pop(None, None)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("clip.") for name in missing)
    return model


def features(model: DRL, words: Tensor, frames: Tensor, inputs: dict) -> tuple[dict, dict]:
    """Make the features of the released inputs."""
    word_mask, frame_mask = inputs["text_mask"].bool(), inputs["video_mask"].bool()
    sentence = words[torch.arange(len(words)), word_mask.sum(1) - 1]
    text = dict(pooled=unit(sentence), sentence=sentence, words=words, mask=word_mask)
    text["weights"] = model.word_weights(words, word_mask)
    with pytest.MonkeyPatch.context() as patch:  # frames as if CLIP had encoded them
        patch.setattr(VideoCLIP, "frame_features", lambda self, frames, mask: (frames, mask))
        video = model.video_features(frames, frame_mask)
    return text, video


def run(name: str, golden: dict) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Compute what the released code computed for a case: tensors, and numbers."""
    inputs, case = golden["inputs"], golden["expected"]["cases"][name]
    model = model_of(case, golden)
    words, frames = (inputs[key].clone().requires_grad_() for key in ("text_tokens", "frames"))
    text, video = features(model, words, frames, inputs)
    terms = model.losses(text, video, None)
    if case["cdcr"] == 2:  # the tokens of a batch weigh the same, in the decorrelation alone
        even = [part | dict(weights=part["mask"].float()) for part in (text, video)]
        cdcr = model.decorrelation_loss(*even)
        terms |= dict(cdcr=cdcr, loss=terms["contrastive"] + model.config.cdcr * cdcr)
    terms["loss"].backward()
    scale = model.clip.model.logit_scale.exp()
    with torch.no_grad():
        sims = model.similarity(text, video, memory_mb=0.01)
    tensors = dict(eval_logits=sims, train_logits=sims * scale, train_logits_v2t=(sims * scale).T)
    tensors |= {"grad.text_tokens": words.grad, "grad.frames": frames.grad}
    tensors = {f"{name}.{output}": tensor for output, tensor in tensors.items()}
    if case["interaction"] != "xti":
        del tensors[f"{name}.train_logits_v2t"]
    agg = f"agg.{case['agg']}"  # of frames that are not there it says nothing
    tensors[agg] = torch.where(video["mask"][..., None], video["frames"], golden["outputs"][agg])
    values = dict(sim_loss=terms["contrastive"], cdcr_loss=terms.get("cdcr", torch.zeros(())))
    values |= dict(loss=terms["loss"])
    numbers = {f"cases.{name}.{key}": value.item() for key, value in values.items()}
    gradients = {key: p.grad for key, p in model.named_parameters()}
    for key in golden["weights"]:
        ours = named(key, case)
        norm = f"grad_norms.{name}.{key.replace('weight_fc.', 'arch.')}"
        if is_unseen_bias(key, case):
            numbers[norm] = 0.0
        elif ours and gradients.get(ours) is not None:
            numbers[norm] = gradients[ours].norm().item()
    return tensors, numbers


def check_everything(golden: dict) -> None:
    """Each tensor and each number of every case is compared."""
    tensors, numbers, cases = {}, {}, golden["expected"]["cases"]
    for name, case in cases.items():
        more_tensors, more_numbers = run(name, golden)
        tensors, numbers = tensors | more_tensors, numbers | more_numbers
        numbers |= {f"cases.{name}.{key}": case[key] for key in RECIPE}
    scale = math.exp(golden["expected"]["logit_scale_log"])  # of scores that are no cosines
    factors = {f"xti.{name}": scale for name in ("train_logits", "train_logits_v2t")}
    compare(golden, tensors, numbers, settings=SETTINGS, factors=factors)
    unused = [w for w in golden["weights"] if not any(named(w, case) for case in cases.values())]
    assert not unused
