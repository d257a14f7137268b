"""DRL gives the numbers of the released code: similarities, losses, gradients of all its forms."""

from functools import cache

import pytest
import torch
from golden import TEST_DATA
from golden import needs_golden
from golden import read_golden
from torch import Tensor

from promptswitch_nb.baselines.drl import DRL
from promptswitch_nb.baselines.shared import SequenceTransformer
from promptswitch_nb.baselines.shared import TightConfig
from promptswitch_nb.baselines.shared import TightFusion
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import CLIPTowers
from promptswitch_nb.system import VideoCLIP
from promptswitch_nb.system import unit

CASES = read_golden("drl")["expected"]["cases"] if TEST_DATA else {"": {}}
pytestmark = needs_golden
OUTPUTS = ("eval_logits", "train_logits", "train_logits_v2t", "grad.text_tokens", "grad.frames")


@cache
def golden() -> tuple[dict, ...]:
    """Read sizes and numbers, inputs, weights and outputs of the released code."""
    found = read_golden("drl")
    return tuple(found[name] for name in ("expected", "inputs", "weights", "outputs"))


def named(name: str, case: dict) -> str | None:
    """Give the name that a released weight has in the model of a case; None: it has none there."""
    layers = case["wti_arch"]
    parts = {"clip.logit_scale": "clip.model.logit_scale"}
    if case["agg"] == "seqTransf":
        parts |= {"frame_position_embeddings.weight": "temporal.positions"}
        parts |= {"transformerClip.resblocks": "temporal.blocks"}
    if layers:
        parts |= {
            f"{group}.arch{layers}_{side}": f"{ours}_weights.scores" + ".0" * (layers == 1)
            for group in ("weight_fc", "arch")
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


def model_of(case: dict) -> DRL:
    """Build the model of a case with the released weights."""
    sizes, _, weights, _ = golden()
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


def features(model: DRL, words: Tensor, frames: Tensor) -> tuple[dict, dict]:
    """Make the features of the released inputs."""
    _, inputs, *_ = golden()
    word_mask, frame_mask = inputs["text_mask"].bool(), inputs["video_mask"].bool()
    sentence = words[torch.arange(len(words)), word_mask.sum(1) - 1]
    text = dict(pooled=unit(sentence), sentence=sentence, words=words, mask=word_mask)
    text["weights"] = model.word_weights(words, word_mask)
    with pytest.MonkeyPatch.context() as patch:  # frames as if CLIP had encoded them
        patch.setattr(VideoCLIP, "frame_features", lambda self, frames, mask: (frames, mask))
        video = model.video_features(frames, frame_mask)
    return text, video


class Comparisons:
    """Compare numbers, and count how often."""

    def __init__(self):
        self.count = 0

    def __call__(self, name: str, found: Tensor, expected: Tensor | float, limit: float = 1e-5):
        """Demand that numbers are as close as the limit."""
        expected = torch.as_tensor(expected)
        assert found.shape == expected.shape, name
        size = max(1.0, expected.abs().max().item())
        assert (found - expected).abs().max() < limit * size, name
        self.count += 1


@pytest.mark.parametrize("name", CASES)
def test_a_case(name):
    sizes, inputs, _, outputs = golden()
    case, close = CASES[name], Comparisons()
    model = model_of(case)
    words, frames = (inputs[key].clone().requires_grad_() for key in ("text_tokens", "frames"))
    text, video = features(model, words, frames)
    real = video["mask"]
    close("agg", video["frames"][real], outputs[f"agg.{case['agg']}"][real])
    if case["cdcr"] == 2:  # the tokens of a batch weigh the same, in the decorrelation alone
        even = [part | dict(weights=part["mask"].float()) for part in (text, video)]
        cdcr = model.decorrelation_loss(*even)
        terms = model.losses(text, video, None)
        terms |= dict(cdcr=cdcr, loss=terms["contrastive"] + model.config.cdcr * cdcr)
    else:
        terms = model.losses(text, video, None)
    terms["loss"].backward()
    close("sim_loss", terms["contrastive"], case["sim_loss"])
    close("cdcr_loss", terms.get("cdcr", torch.zeros(())), case["cdcr_loss"])
    close("loss", terms["loss"], case["loss"])
    scale = model.clip.model.logit_scale.exp()
    with torch.no_grad():
        sims = model.similarity(text, video, memory_mb=0.01)
    found = dict(eval_logits=sims, train_logits=sims * scale, train_logits_v2t=(sims * scale).T)
    found |= {"grad.text_tokens": words.grad, "grad.frames": frames.grad}
    for output in OUTPUTS:
        if f"{name}.{output}" in outputs:
            limit = 1e-4 if output.startswith("grad") else 1e-5
            close(output, found[output], outputs[f"{name}.{output}"], limit)
    gradients = {key: p.grad for key, p in model.named_parameters()}
    for key, norm in sizes["grad_norms"][name].items():
        if is_unseen_bias(key, case):
            assert norm < 1e-6, key  # rounding
        else:
            close(key, gradients[named(key, case)].norm(), norm, 1e-4)
    assert close.count >= 8


def test_every_output_is_compared():
    _, _, weights, outputs = golden()
    named_outputs = {f"{name}.{output}" for name in CASES for output in OUTPUTS}
    assert outputs.keys() - named_outputs == {f"agg.{case['agg']}" for case in CASES.values()}
    unused = [w for w in weights if not any(named(w, case) for case in CASES.values())]
    assert not unused
