"""EMCL as released gives the numbers of its released code."""

import pytest
import torch
from golden import needs_golden
from golden import read_golden
from torch import Tensor

from promptswitch_nb.baselines.emcl import EMCL
from promptswitch_nb.baselines.emcl import ReleasedEMFusion
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.system import unit

pytestmark = needs_golden
SETTINGS = {"E", "B", "F", "K", "stage_num", "momentum", "lamd", "beta", "temp", "logit_scale_log"}
STARTS = ("start", "distinct")
KINDS = {"mu_at_start_unique_abs", "distinct_mu_after_20_more_calls"}  # of the bases


@pytest.fixture(scope="module")
def golden() -> dict:
    """Read everything."""
    return read_golden("emcl")


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


def stacked(rows: Tensor, start: Tensor, golden: dict) -> tuple[Tensor, Tensor]:
    """Iterate over a stack in the released order of sums: M and Z."""
    m = start.expand(len(rows), -1)
    for _ in range(golden["expected"]["stage_num"]):
        z = (rows.T @ m).softmax(1)
        z = z / (1e-6 + z.sum(0))
        m = rows @ z
        m = m / (1e-6 + m.norm(dim=0))
    return m, z


def stacked_similarity(text: dict, video: dict, start: Tensor, golden: dict) -> Tensor:
    """Compare texts with videos by the stack of all their rows, in the released order of sums."""
    sentence, frames, mask = text["sentence"], video["frames"], video["mask"]
    weights = torch.einsum("qe,nfe->qnf", sentence, frames) / golden["expected"]["temp"]
    pooled = torch.einsum("qnf,nfe->qne", weights.softmax(-1) * mask, frames)
    rows = torch.cat([pooled.flatten(0, 1), sentence])
    m, z = stacked(rows, start, golden)
    rows = rows + golden["expected"]["beta"] * m @ z.T
    pairs, texts = rows[: -len(sentence)].view_as(pooled), rows[-len(sentence) :]
    return torch.einsum("qne,qe->qn", unit(pairs), unit(texts))


def rows_of(fusion: ReleasedEMFusion, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Add to the rows of a stack what the bases keep of them: the sum, and what was added."""
    B = int((len(embeddings) + 1) ** 0.5)
    while len(embeddings) < B * B + B:
        B -= 1
    pairs, texts = embeddings[: B * B], embeddings[B * B :]
    frames = pairs.view(B, B, -1).transpose(0, 1)  # each video has a frame for each text
    weights = torch.eye(B).to(texts)[:, None].expand(B, B, B)
    of_text, of_pairs, z = fusion.iterate(texts, weights, frames)
    kept = torch.cat([of_pairs.flatten(0, 1), of_text]) @ z.T
    return embeddings + fusion.config.beta * kept, kept


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


def on_the_stack(start: str, golden: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute what the released code computed of a stack of rows from one start.

    From the bases as they start, rounding grows by a factor of hundreds: the released rows are
    3e-5 off the exact ones, the scores 1.4e-5. So they are compared with a stack that sums in
    their order, and the stack with the system's own form in double precision.
    """
    rows, mu = golden["inputs"]["emcl.embeddings"], golden["inputs"][f"mu_{start}"]
    beta, momentum = golden["expected"]["beta"], golden["expected"]["momentum"]
    fusion = build(start, golden).fusion.double()
    m, z = stacked(rows.double(), mu.double(), golden)
    torch.testing.assert_close(rows_of(fusion, rows.double())[1], m @ z.T, rtol=1e-9, atol=1e-9)
    fusion.follow(m[:0], m[None])
    after = momentum * mu.double() + (1 - momentum) * m.mean(0)
    torch.testing.assert_close(fusion.bases, after, rtol=1e-9, atol=1e-9)
    m, z = stacked(rows, mu, golden)
    tensors = {"emcl.out_eval" + "_distinct" * (start == "distinct"): rows + beta * m @ z.T}
    if start == "start":
        tensors["emcl.out_train"] = rows + beta * m @ z.T
        tensors["emcl.mu_after_train_call"] = momentum * mu + (1 - momentum) * m.mean(0)
    values = torch.linalg.svdvals(m @ z.T)
    return tensors, {f"singular_values_of_reconstruction_{start}": values}


def distinct_after(calls: int, golden: dict) -> int:
    """Count the bases that differ after some batches, from a start where all do."""
    fusion, rows = build("distinct", golden).fusion, golden["inputs"]["emcl.embeddings"]
    for _ in range(calls):
        m, _ = stacked(rows, fusion.bases.clone(), golden)
        fusion.follow(m[:0], m[None])
    return len(fusion.bases.unique())


def test_everything_in_the_folder(golden):
    """Each tensor and each number is compared."""
    expected, numbers = golden["expected"], {}
    tensors, left = {}, distinct_after(21, golden)
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
    assert tensors.keys() == golden["outputs"].keys()
    for name, ours in tensors.items():
        bound = 1e-4 if ".grad." in name else 3e-5 if name.startswith("start.") else 1e-5
        torch.testing.assert_close(ours, golden["outputs"][name], rtol=bound, atol=bound, msg=name)
    assert numbers.keys() == expected.keys() - SETTINGS - KINDS - {"torch"}
    for name, ours in numbers.items():
        theirs = torch.as_tensor(expected[name])
        ours = torch.as_tensor(ours)[: theirs.numel()] if theirs.ndim else torch.as_tensor(ours)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, check_dtype=False, msg=name)
    assert left == expected["distinct_mu_after_20_more_calls"] == expected["K"]
    assert len(tensors) + len(numbers) > 15


@pytest.mark.parametrize("start", STARTS)
@torch.no_grad()
def test_scores_but_for_rounding(start, golden):
    """A stack gives the released scores, and the system gives those of the stack."""
    text, video, *_ = features(golden)
    mu, name = golden["inputs"][f"mu_{start}"], f"{start}.eval_logits"
    scores = stacked_similarity(text, video, mu, golden)
    torch.testing.assert_close(scores, golden["outputs"][name], rtol=1e-5, atol=1e-5)
    half = len(golden["outputs"]["start.eval_logits_sub_block"])
    for n in (len(scores), half):
        sides = [
            {k: x[:n] if x.dtype == torch.bool else x[:n].double() for k, x in side.items()}
            for side in (text, video)
        ]
        ours = build(start, golden).double().similarity(*sides)
        exact = stacked_similarity(*sides, mu.double(), golden)
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_the_start_is_one_and_minus_one(golden):
    """The numbers that bases start from are those that the released start has."""
    theirs, K = golden["expected"]["mu_at_start_unique_abs"], golden["expected"]["K"]
    ours = torch.cat([build("start", golden).fusion.first() for _ in range(20)])
    assert ours.shape == (20, K)
    given = golden["inputs"]["mu_start"].abs().unique()
    assert sorted({round(x, 5) for x in given.tolist()}) == pytest.approx(theirs, abs=1e-6)
    assert ours.abs().max() <= 1 and ours.abs().median() > min(theirs)
    assert len(ours.sign().unique()) == 2
