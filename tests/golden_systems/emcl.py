"""EMCL as released gives the numbers of its released code."""

import pytest
import torch
from golden import compare
from torch import Tensor

from promptswitch_nb.baselines.emcl import EMCL
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.system import unit

SETTINGS = {"E", "B", "F", "K", "stage_num", "momentum", "lamd", "beta", "temp", "logit_scale_log"}
SETTINGS |= {"mu_at_start_unique_abs"}
STARTS = ("start", "distinct")
# Equal bases make the last digits of these uncertain: in float64 the same steps lie up to
# 3.6e-5 from the recorded numbers, and each kind of processor rounds to others of that size.
ROUNDED = {"emcl.out_eval": 3, "emcl.out_train": 3, "singular_values_of_reconstruction_start": 4}


def build(start: str, golden: dict, **options) -> EMCL:
    """Build the system of the size of the released one, with the bases of a start."""
    sizes = golden["expected"]
    towers = tiny_clip(["a"], config=TINY_CONFIG | dict(embed_dim=sizes["E"]))
    numbers = dict(bases=sizes["K"], stages=sizes["stage_num"], beta=float(sizes["beta"]))
    numbers |= dict(momentum=sizes["momentum"], temperature=float(sizes["temp"]))
    model = EMCL(towers, EMCL.config_of("official", **numbers | options))
    model.fusion.bases.copy_(golden["inputs"][f"mu_{start}"])
    with torch.no_grad():
        model.clip.model.logit_scale.fill_(sizes["logit_scale_log"])
    return model.eval()


def features(golden: dict) -> tuple[dict, dict, Tensor, Tensor]:
    """Make the features of both sides, and the leaves that they are made of."""
    inputs = golden["inputs"]
    sentence, frames = (inputs[name].clone().requires_grad_() for name in ("text", "frames"))
    mask = inputs["video_mask"].bool()
    text = dict(sentence=sentence, pooled=unit(sentence))
    video = dict(frames=frames, mask=mask, pooled=unit(frames.mean(1)))
    return text, video, sentence, frames


def run(start: str, golden: dict) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Compute what the released code computed of texts and frames from one start."""
    model = build(start, golden)
    text, video, sentence, frames = features(golden)
    with torch.no_grad():
        tensors = {f"{start}.eval_logits": model.similarity(text, video)}
    terms = model.train().losses(text, video, ids=None)
    terms["loss"].backward()
    tensors |= {f"{start}.grad.text": sentence.grad, f"{start}.grad.frames": frames.grad}
    tensors[f"{start}.mu_after"] = model.fusion.bases.clone()
    return tensors, {f"{start}.loss": terms["loss"].item()}


def on_the_stack(start: str, golden: dict) -> tuple[dict[str, Tensor], dict[str, list]]:
    """Compute what the released code computed of a stack of rows from one start."""
    rows, fusion = golden["inputs"]["emcl.embeddings"], build(start, golden).fusion
    m, z = fusion.iterate(rows)
    out = rows + fusion.config.beta * m @ z.T
    tensors = {"emcl.out_eval" + "_distinct" * (start == "distinct"): out}
    if start == "start":
        fusion.follow(m)
        tensors |= {"emcl.out_train": out, "emcl.mu_after_train_call": fusion.bases}
    name = f"singular_values_of_reconstruction_{start}"
    values = torch.linalg.svdvals(m @ z.T)[: len(golden["expected"][name])]
    return tensors, {name: values.tolist()}


def distinct_after(calls: int, golden: dict) -> int:
    """Count the bases that differ after some batches, from a start where all do."""
    fusion, rows = build("distinct", golden).fusion, golden["inputs"]["emcl.embeddings"]
    for _ in range(calls):
        fusion.follow(fusion.iterate(rows)[0])
    return fusion.bases.unique().numel()


def check_everything(golden: dict) -> None:
    """Each tensor and each number is compared."""
    tensors, numbers = {}, dict(distinct_mu_after_20_more_calls=distinct_after(21, golden))
    for start in STARTS:
        for part in (run, on_the_stack):
            more_tensors, more_numbers = part(start, golden)
            tensors, numbers = tensors | more_tensors, numbers | more_numbers
    half = golden["outputs"]["start.eval_logits_sub_block"].shape[0]
    text, video, *_ = features(golden)
    parts = build("start", golden, block=half)
    with torch.no_grad():
        sub = parts.similarity(text, video)[:half, :half]
    tensors["start.eval_logits_sub_block"] = sub
    change = (sub - tensors["start.eval_logits"][:half, :half]).abs().max().item()
    numbers["block_dependence_max_abs"] = change
    compare(golden, tensors, numbers, settings=SETTINGS, factors=ROUNDED)


def check_the_start(golden: dict) -> None:
    """The numbers that bases start from are those that the released start has: 1 and -1."""
    theirs, K = golden["expected"]["mu_at_start_unique_abs"], golden["expected"]["K"]
    ours = torch.cat([build("start", golden).fusion.first() for _ in range(20)])
    assert ours.shape == (20, K)
    given = golden["inputs"]["mu_start"].abs().unique()
    rounded = sorted({round(x, 5) for x in given.tolist()})
    assert rounded == pytest.approx(theirs, abs=1e-6)
    assert ours.abs().max() <= 1 and ours.abs().median() >= 0.9999
    assert len(ours.sign().unique()) == 2
