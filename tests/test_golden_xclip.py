"""X-CLIP gives the numbers of the released code: similarities, losses and gradients."""

from functools import cache

import pytest
import torch
from golden import needs_golden
from golden import read_golden
from torch import Tensor

from promptswitch_nb.baselines.shared import SequenceTransformer
from promptswitch_nb.baselines.xclip import TEMPERATURE
from promptswitch_nb.baselines.xclip import XCLIP
from promptswitch_nb.baselines.xclip import attend
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import CLIPTowers
from promptswitch_nb.losses import contrastive_from_similarity
from promptswitch_nb.system import VideoCLIP
from promptswitch_nb.system import unit

pytestmark = needs_golden
HEADS = ("meanP", "seqTransf")
NAMES = {
    "clip.logit_scale": "clip.model.logit_scale",
    "global_mat_weight": "fusion.matrices.whole",
    "local_mat_weight": "fusion.matrices.local",
    "word_logit_weight": "fusion.matrices.words",
    "frame_logit_weight": "fusion.matrices.frames",
    "word_mat_weight": "fusion.matrices.words_of_frame",
    "frame_mat_weight": "fusion.matrices.frames_of_word",
    "frame_mat_weight2": "fusion.matrices.frames_last",
    "word_mat_weight2": "fusion.matrices.words_last",
    "frame_position_embeddings.weight": "temporal.positions",
    "transformerClip.resblocks": "temporal.blocks",
}


@cache
def golden() -> tuple[dict, ...]:
    """Read sizes and numbers, inputs, weights and outputs of the released code."""
    found = read_golden("xclip")
    return tuple(found[name] for name in ("expected", "inputs", "weights", "outputs"))


def named(name: str) -> str:
    """Give the name that a released weight has in ours."""
    theirs = next(key for key in NAMES if name == key or name.startswith(key + "."))
    return NAMES[theirs] + name.removeprefix(theirs)


def model_of(head: str, *, fresh: bool = False) -> XCLIP:
    """Build a model with the released weights; with fresh matrices if wanted."""
    sizes, _, weights, _ = golden()
    clip = CLIPTowers(TINY_CONFIG | dict(embed_dim=sizes["E"]))
    config = XCLIP.config_of("official", temporal_layers=sizes["layers"] * (head == "seqTransf"))
    preprocess = XCLIP(clip).preprocess.changed(
        n_frames=sizes["F"], test_frames=sizes["F"], max_words=sizes["words"]
    )
    model = XCLIP(clip, config, preprocess=preprocess).eval()
    if model.temporal is not None:
        shape = dict(layers=sizes["layers"], heads=sizes["heads"], rows=sizes["positions"])
        model.temporal = SequenceTransformer(sizes["E"], **shape)
    state = {named(name): weight for name, weight in weights.items()}
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


class Comparisons:
    """Compare numbers, and remember which."""

    def __init__(self):
        self.names = []

    def __call__(self, name: str, found: Tensor, expected: Tensor | float, limit: float = 1e-5):
        """Demand that numbers are as close as the limit."""
        expected = torch.as_tensor(expected)
        assert found.shape == expected.shape, name
        size = max(1.0, expected.abs().max().item())
        assert (found - expected).abs().max() < limit * size, name
        self.names.append(name)


def fine_part(model: XCLIP, text: dict, video: dict) -> Tensor:
    """Compute the share of words with frames: what is left when all other likeness is 0."""
    ready = model.fusion.prepare(video)
    nothing = torch.zeros_like(ready["for_sentence"])
    for_words = ready["for_words"].clone()
    for_words[:, 0] = 0
    ready |= dict(for_sentence=nothing, for_words=for_words)
    return 4 * model.fusion(text, ready)


@pytest.mark.parametrize("head", HEADS)
def test_a_head(head):
    sizes, inputs, _, outputs = golden()
    close, model = Comparisons(), model_of(head)
    given = dict(inputs)
    for name in ("sentence", "words", "frames"):
        given[name] = inputs[name].clone().requires_grad_()
    text, video = features(model, given)
    scale, pairs = model.clip.model.logit_scale.exp(), min(sizes["Q"], sizes["N"])
    sims = model.similarity(text, video)
    contrastive = contrastive_from_similarity(sims[:pairs, :pairs], logit_scale=scale)
    contrastive["contrastive"].backward()
    with torch.no_grad():
        blocks = model.similarity(text, video, memory_mb=0.01)
        close("logits", blocks * scale, outputs[f"logits.{head}"])
        fresh = model_of(head, fresh=True)
        of_fresh = fresh.similarity(*features(fresh, inputs))
        close("identity", of_fresh * scale, outputs[f"identity.logits.{head}"])
        close("part", fine_part(model, text, video), outputs["part.frame_word"])
    close("loss", contrastive["contrastive"], sizes["loss"][head])
    for name in ("sentence", "words", "frames"):
        close(f"grad.{name}", given[name].grad, outputs[f"grad.{name}.{head}"], 1e-4)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, norm in sizes["grad_norms"][head].items():
        close(name, gradients[named(name)].norm(), norm, 1e-4)
    assert len(close.names) == 7 + len(sizes["grad_norms"][head]) > 7


def test_every_output_is_compared():
    sizes, _, weights, outputs = golden()
    per_head = ("logits", "identity.logits", "grad.sentence", "grad.words", "grad.frames")
    compared = {f"{output}.{head}" for output in per_head for head in HEADS} | {"part.frame_word"}
    assert outputs.keys() == compared
    assert sizes["softmax_temperature"] == TEMPERATURE
    assert set(sizes["loss"]) == set(HEADS)
    names = {name for name, _ in model_of("seqTransf").named_parameters()}
    assert {named(name) for name in weights} <= names


def test_attention_is_a_mean_weighed_by_likeness():
    values = torch.tensor([[0.1], [0.2]])
    weight = torch.sigmoid(torch.tensor(0.1 / TEMPERATURE))
    found = attend(values, torch.eye(2))
    assert torch.allclose(found, weight * 0.2 + (1 - weight) * 0.1)
