"""X-Pool's attention, the simple poolings and the optimiser give its released code's numbers."""

import torch
from golden import close_enough
from golden import compare
from torch import Tensor

from promptswitch_nb.baselines.xpool import XPoolCLIP
from promptswitch_nb.clip import TINY_CONFIG
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.fusion import XPool
from promptswitch_nb.fusion import XPoolConfig
from promptswitch_nb.fusion import _attention_weights
from promptswitch_nb.fusion import _top_k_weights
from promptswitch_nb.fusion import attention_pooling
from promptswitch_nb.fusion import mean_pooling
from promptswitch_nb.fusion import top_k_pooling
from promptswitch_nb.losses import contrastive_from_similarity
from promptswitch_nb.metrics import compare_similarity
from promptswitch_nb.metrics import expected_rank
from promptswitch_nb.steps import TransformersAdamW
from promptswitch_nb.steps import lr_at
from promptswitch_nb.system import unit
from promptswitch_nb.xpool import FoldedXPool

SETTINGS = {"E", "heads", "N", "F", "B", "topk", "attention_temperature", "logit_scale_log"}
SETTINGS |= {"optim"}
NAMES = {  # of the released weights, and ours of the same
    "layer_norm1": "norm_in",
    "layer_norm2": "norm_mix",
    "layer_norm3": "norm_out",
    "cross_attn.q_proj": "query",
    "cross_attn.k_proj": "key",
    "cross_attn.v_proj": "value",
    "cross_attn.out_proj": "out",
    "linear_proj": "linear",
}


def our_name(released: str) -> str:
    """Rename a released weight."""
    part, _, kind = released.rpartition(".")
    return f"{NAMES[part]}.{kind}"


def build(kind: type[XPool], golden: dict, *, fresh: bool = False) -> XPool:
    """Build the fusion of the released size, with its weights or as it starts."""
    sizes = golden["expected"]
    xpool = kind(sizes["E"], XPoolConfig(heads=sizes["heads"])).eval()
    if not fresh:
        xpool.load_state_dict({our_name(name): w for name, w in golden["weights"].items()})
    return xpool


def attended(golden: dict) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Let texts attend to frames: what is pooled, cosines, the loss and its gradients."""
    inputs = golden["inputs"]
    text, frames = (inputs[name].clone().requires_grad_() for name in ("text", "frames"))
    xpool, fresh = build(XPool, golden), build(XPool, golden, fresh=True)
    sims = xpool(dict(sentence=text), dict(frames=frames))
    loss = contrastive_from_similarity(sims, logit_scale=scale_of(golden))["contrastive"]
    loss.backward()
    captions, clips = dict(sentence=inputs["eval.text"]), dict(frames=inputs["eval.frames"])
    tensors = {"pooled": xpool.pool(text, frames), "sims": sims}
    tensors |= {"fresh.pooled": fresh.pool(text, frames)}
    tensors |= {"fresh.sims": fresh(dict(sentence=text), dict(frames=frames))}
    tensors |= {"eval.sims": xpool(captions, clips)}
    tensors |= {"grad.text.transformer": text.grad, "grad.frames.transformer": frames.grad}
    grads = {name: p.grad.norm().item() for name, p in xpool.named_parameters()}
    numbers = {f"grad_norms.{name}": grads[our_name(name)] for name in golden["weights"]}
    return tensors, numbers | {"loss.transformer": loss.item()}


def simply_pooled(golden: dict) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Pool by the mean, by the best frames and by attention without weights."""
    (text, frames), sizes = (golden["inputs"][n] for n in ("text", "frames")), golden["expected"]
    k, temperature = sizes["topk"], sizes["attention_temperature"]
    scores = torch.einsum("qe,nfe->qnf", unit(text), unit(frames))
    weights = dict(topk=_top_k_weights(scores, None, k))
    weights |= dict(attention=_attention_weights(scores, None, temperature))
    sims = dict(avg=mean_pooling(text, frames), topk=top_k_pooling(text, frames, k=k))
    sims |= dict(attention=attention_pooling(text, frames, temperature=temperature))
    tensors = {f"{name}.sims": values for name, values in sims.items()}
    for name, shares in weights.items():
        tensors[f"{name}.pooled"] = torch.einsum("qnf,nfe->nqe", shares, unit(frames))
    tensors["avg.pooled"] = unit(frames).mean(dim=1)
    losses = {
        f"loss.{name}": contrastive_from_similarity(values, logit_scale=scale_of(golden))
        for name, values in sims.items()
    }
    return tensors, {name: terms["contrastive"].item() for name, terms in losses.items()}


def scale_of(golden: dict) -> Tensor:
    """Compute the factor of the similarities in the loss."""
    return torch.tensor(golden["expected"]["logit_scale_log"]).exp()


def metrics(golden: dict) -> dict[str, object]:
    """Compute the metrics of the recorded similarities with the package's rules."""
    sims, owner = golden["outputs"]["eval.sims"], golden["inputs"]["eval.video_index"]
    places, numbers = compare_similarity(sims, owner, tolerance=0), {}
    for way, theirs in dict(t2v="t2v", v2t="v2t_official").items():
        rank = expected_rank(places[theirs], ties="mean").double()
        for k in (1, 5, 10, 50, 100):
            numbers[f"metrics.{way}.R{k}"] = 100 * (rank <= k).double().mean().item()
        numbers[f"metrics.{way}.MedR"] = rank.quantile(0.5).item()
        numbers[f"metrics.{way}.MeanR"] = rank.mean().item()
    return numbers


def optimiser_trace(golden: dict) -> Tensor:
    """Step with the package's optimiser and schedule."""
    options, trace = golden["expected"]["optim"], []
    weight = torch.nn.Parameter(golden["outputs"]["optim.start"].clone())
    kept = {name: options[name] for name in ("lr", "betas", "eps", "weight_decay")}
    optimiser = TransformersAdamW([weight], **kept)
    for step, gradient in enumerate(golden["outputs"]["optim.grads"]):
        plan = dict(steps=options["steps"], warmup=options["warmup_steps"], from_zero=True)
        optimiser.param_groups[0]["lr"] = options["lr"] * lr_at(step, **plan)
        weight.grad = gradient
        optimiser.step()
        trace.append(weight.detach().clone())
    return torch.stack(trace)


def is_identity(golden: dict) -> bool:
    """Tell whether all matrices start as the identity, and all biases at 0."""
    fresh = build(XPool, golden, fresh=True)
    layers = [fresh.query, fresh.key, fresh.value, fresh.out, fresh.linear]
    eye = torch.eye(fresh.embed_dim)
    return all(torch.equal(x.weight, eye) and not x.bias.any() for x in layers)


def check_everything(golden: dict) -> None:
    """Each tensor and each number is compared."""
    tensors, numbers = {"optim.trace": optimiser_trace(golden)}, metrics(golden)
    numbers["fresh_is_identity"] = is_identity(golden)
    for part in (attended, simply_pooled):
        more_tensors, more_numbers = part(golden)
        tensors, numbers = tensors | more_tensors, numbers | more_numbers
    given = {"optim.start", "optim.grads"}
    compare(golden, tensors, numbers, given=given, settings=SETTINGS)


@torch.no_grad()
def check_the_folded_form(golden: dict) -> None:
    """What is computed once for each video gives the released cosines, in a system too."""
    inputs, outputs = golden["inputs"], golden["outputs"]
    towers = tiny_clip(["a"], config=TINY_CONFIG | dict(embed_dim=golden["expected"]["E"]))
    for name, of_text, fresh in (("", "", False), ("fresh.", "", True), ("eval.", "eval.", False)):
        fusion = build(FoldedXPool, golden, fresh=fresh)
        model = XPoolCLIP(towers, fusion=fusion).eval()
        sentence, frames = inputs[f"{of_text}text"], inputs[f"{of_text}frames"]
        text = dict(sentence=sentence, pooled=unit(sentence))
        video = dict(frames=frames, pooled=unit(frames.mean(dim=1)))
        for memory_mb in (1e-3, 256):
            sims = model.similarity(text, video, memory_mb=memory_mb)
            close_enough(name, sims, outputs[f"{name}sims"], 1e-5)
