"""CLIP4Clip's heads, metrics and optimiser give the numbers of its released code."""

import math

import torch
from golden import compare
from golden import renamed
from torch import Tensor

from promptswitch_nb.baselines.clip4clip import CLIP4ClipLSTM
from promptswitch_nb.baselines.clip4clip import CLIP4ClipMean
from promptswitch_nb.baselines.clip4clip import CLIP4ClipTight
from promptswitch_nb.baselines.clip4clip import CLIP4ClipTransformer
from promptswitch_nb.baselines.shared import SequenceTransformer
from promptswitch_nb.baselines.shared import TightConfig
from promptswitch_nb.baselines.shared import TightFusion
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.losses import contrastive_from_similarity
from promptswitch_nb.metrics import compare_similarity
from promptswitch_nb.metrics import expected_rank
from promptswitch_nb.metrics import metrics_from_similarity
from promptswitch_nb.system import VideoCLIP
from promptswitch_nb.system import unit

SETTINGS = {"E", "heads", "layers", "Q", "N", "F", "positions", "logit_scale_log", "optim"}
SETTINGS |= {"train_equals_eval_seqTransf"}
NAMES = {  # of the released weights, and ours of the same
    "transformerClip.resblocks.": "temporal.blocks.",
    "frame_position_embeddings.weight": "temporal.positions",
    "lstm_visual.": "temporal.lstm.",
    "cross.transformer.resblocks.": "fusion.transformer.blocks.",
    "cross.embeddings.position_embeddings.weight": "fusion.transformer.positions",
    "cross.pooler.ln_pool.": "fusion.norm.",
    "cross.pooler.dense.": "fusion.dense.",
    "similarity_dense.": "fusion.score.",
    "clip.logit_scale": "clip.model.logit_scale",
}


def build(head: str, golden: dict) -> VideoCLIP:
    """Build a system of the size of the released one, with its weights."""
    sizes = golden["expected"]
    parts = dict(layers=sizes["layers"], heads=sizes["heads"], rows=sizes["positions"])
    towers = tiny_clip(["a"], config=TINY_CONFIG | dict(embed_dim=sizes["E"]))
    if head == "meanP":
        model = CLIP4ClipMean(towers)
    elif head == "seqTransf":
        model = CLIP4ClipTransformer(towers)
        model.temporal = SequenceTransformer(sizes["E"], **parts)
    elif head == "seqLSTM":
        model = CLIP4ClipLSTM(towers)
    else:
        model = CLIP4ClipTight(towers, fusion=TightFusion(sizes["E"], TightConfig(**parts)))
    weights = {renamed(name, NAMES): weight for name, weight in golden["weights"].items()}
    own = model.state_dict()
    found = {name: weight for name, weight in weights.items() if name in own}
    if head == "seqLSTM":  # whose released form has a table of places that it does not read
        found.pop("temporal.positions", None)
    new = {name for name in own if not name.startswith("clip.")}
    assert new == {name for name in found if not name.startswith("clip.")}
    model.load_state_dict(own | found)
    return model.eval()


def run(head: str, golden: dict) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Compute what the released code computed for one head: tensors, and numbers."""
    model, inputs = build(head, golden), golden["inputs"]
    text, frames = (inputs[name].clone().requires_grad_() for name in ("text", "frames"))
    mask = inputs["video_mask"].bool()
    sentence, vectors = text[:, 0], model.across_frames(frames, mask)
    texts = dict(sentence=sentence, pooled=unit(sentence))
    videos = dict(frames=vectors, mask=mask, pooled=model.pool(vectors, mask))
    scale = 1.0 if head == "tightTransf" else model.clip.model.logit_scale.exp()
    logits = scale * model.similarity(texts, videos)
    n = min(logits.shape)
    pairs = [{key: tensor[:n] for key, tensor in side.items()} for side in (texts, videos)]
    terms = model.losses(*pairs, ids=None)
    torch.testing.assert_close(
        terms["loss"], contrastive_from_similarity(logits[:n, :n], logit_scale=1)["contrastive"]
    )
    terms["loss"].backward()
    tensors = {f"logits.{head}": logits.detach()}
    tensors |= {f"grad.text.{head}": text.grad, f"grad.frames.{head}": frames.grad}
    numbers = {f"loss.{head}": terms["loss"].item()}
    numbers |= {f"loss_{way}.{head}": terms[way].item() for way in ("t2v", "v2t")}
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for released in golden["weights"]:
        if renamed(released, NAMES) in grads:
            norm = grads[renamed(released, NAMES)].norm().item()
            numbers[f"grad_norms.{head}.{released}"] = norm
    return tensors, numbers


def metrics_by_ties(sim: Tensor) -> dict[str, float]:
    """Compute the released metrics: every place that is tied with the right one is a rank."""
    places = []
    for i, row in enumerate(sim):
        in_order = row.sort(descending=True).values
        places += (in_order == sim[i, i]).nonzero()[:, 0].tolist()
    rank = torch.tensor(places).double() + 1
    metrics = {f"R{k}": 100 * (rank <= k).double().mean().item() for k in (1, 5, 10)}
    metrics |= {name: rank.quantile(0.5).item() for name in ("MR", "MedianR")}
    return metrics | dict(MeanR=rank.mean().item(), number=len(rank))


def metrics(golden: dict) -> dict[str, float]:
    """Compute the metrics of both matrices; the one without ties with the package's."""
    sim, out = golden["outputs"]["metrics.sim"], {}
    for way, matrix in dict(t2v=sim, v2t=sim.T).items():
        values = metrics_by_ties(matrix)
        number = values.pop("number")
        out |= {f"metrics.{way}.{name}": value for name, value in values.items()}
        if way == "t2v":
            out["metrics.number_of_ranks_t2v"] = number
    multi, owner = (golden["outputs"][f"metrics_multi.{key}"] for key in ("sim", "video_index"))
    ours = metrics_from_similarity(multi, owner, tolerance=0)
    rank = expected_rank(compare_similarity(multi, owner, tolerance=0)["t2v"], ties="mean")
    out["metrics_multi.t2v.Std_Rank"] = rank.std(correction=0).item()
    for way, theirs in dict(t2v="t2v", v2t="v2t_official").items():
        names = {f"R{k}": f"R@{k}" for k in (1, 5, 10)}
        names |= dict(MR="MdR", MedianR="MdR", MeanR="MnR")
        for name, our in names.items():
            out[f"metrics_multi.{way}.{name}"] = ours[f"{theirs}/{our}"]
    return out


def optimiser_trace(golden: dict) -> Tensor:
    """Step as the released optimiser: no bias correction, decay inside, a cosine that jumps."""
    options = golden["expected"]["optim"]
    (beta_1, beta_2), warmup = options["betas"], options["warmup"]
    weight = golden["outputs"]["optim.start"]
    m, v, trace = torch.zeros_like(weight), torch.zeros_like(weight), []
    for step, gradient in enumerate(golden["outputs"]["optim.grads"]):
        gradient = gradient * min(1, options["max_grad_norm"] / (gradient.norm().item() + 1e-6))
        m = beta_1 * m + (1 - beta_1) * gradient
        v = beta_2 * v + (1 - beta_2) * gradient**2
        share = step / options["t_total"]
        factor = share / warmup if share < warmup else (1 + math.cos(math.pi * share)) / 2
        update = m / (v.sqrt() + options["eps"]) + options["weight_decay"] * weight
        weight = weight - options["lr"] * factor * update
        trace.append(weight)
    return torch.stack(trace)


def check_everything(golden: dict) -> None:
    """Each tensor and each number is compared."""
    tensors, numbers = {"optim.trace": optimiser_trace(golden)}, metrics(golden)
    for head in ("meanP", "seqTransf", "seqLSTM", "tightTransf"):
        more_tensors, more_numbers = run(head, golden)
        tensors, numbers = tensors | more_tensors, numbers | more_numbers
    given = {"optim.start", "optim.grads", "metrics.sim"}
    given |= {"metrics_multi.sim", "metrics_multi.video_index"}
    compare(golden, tensors, numbers, given=given, settings=SETTINGS)


def check_that_training_mode_gives_the_same(golden: dict) -> None:
    """The sequential transformer has no dropout, as the released one is found to have none."""
    assert golden["expected"]["train_equals_eval_seqTransf"]
    model, inputs = build("seqTransf", golden), golden["inputs"]
    arguments = inputs["frames"], inputs["video_mask"].bool()
    torch.testing.assert_close(
        model.train().across_frames(*arguments), model.eval().across_frames(*arguments)
    )
