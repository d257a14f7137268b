"""Training steps and an evaluation made by hand in plain PyTorch, from settings that a test states.

The settings `s` are a flat dict: the names are those of `TrainConfig` and of Prompt Switch's
options, and every name that is used has a value. The weights `w` go by the names of the package's
model. Of the package, only leaves are used that take plain numbers: the sampler, the transforms
and the plan of the batches, each with its arguments written out.
"""

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from conftest import WORDS
from torch import Tensor

from promptswitch_nb.batches import EpochBatches
from promptswitch_nb.frames import centre_crop
from promptswitch_nb.frames import random_crop
from promptswitch_nb.frames import sample_indices
from promptswitch_nb.frames import whole_frame
from promptswitch_nb.video import open_video
from promptswitch_nb.video import write_video

Weights = dict[str, Tensor]
Triples = list[tuple[str, str, str]]  # video id, path, caption
VISUAL = "clip.model.visual"
HEADS, IMAGE_SIZE, MAX_WORDS = 2, 16, 12  # of SMALL_CLIP
START, END = len(WORDS) + 2, len(WORDS) + 3
FREQUENT = ("a", "the", "is", "and", ".")  # of D12's list, those that the captions hold


# A small data tree


def make_tree(root: Path) -> Path:
    """Write 8 videos a split, wider than high, in which no two frames are alike."""
    colours, rows = ("red", "green", "blue", "yellow", "white"), []
    moves, rng = ("left", "right", "up", "down"), np.random.default_rng(0)
    for number in range(24):
        blocks = rng.integers(0, 256, (10 + number % 3, 4, 6, 3), dtype=np.uint8)
        frames = blocks.repeat(8, 1).repeat(8, 2)
        file, split = f"{number:02}.mp4", ("train", "val", "test")[number // 8]
        write_video(root / "videos" / file, frames)
        what = f"{colours[number % 5]} {('square', 'ring')[number % 8 // 5]}"
        first, then = moves[number % 4], moves[number // 2 % 4]
        captions = [f"a {what} moves {first} .", f"the {what} is moving {first} and {then} and up"]
        rows.append(dict(video=file, captions=captions, split=split))
    (root / "captions.json").write_text(json.dumps(rows))
    return root


def triples(root: Path, split: str) -> Triples:
    """List the pairs of a split of this tree."""
    rows = json.loads((root / "captions.json").read_text())
    return [
        (row["video"], str(root / "videos" / row["video"]), caption)
        for row in rows
        for caption in row["captions"]
        if row["split"] == split
    ]


# What the model reads


@cache
def decoded(path: str) -> np.ndarray:
    """Decode all frames of a file."""
    with open_video(path) as video:
        return video.frames(np.arange(len(video)))


def training_frames(s: dict, path: str, *, epoch: int, index: int) -> Tensor:
    """Draw and transform the frames of a training pair: (F,3,H,W)."""
    rng, video = np.random.default_rng([s["seed"], epoch, index, 0]), decoded(path)
    chunks, mode = dict(frames_per_chunk=s["frames_per_chunk"]), s["train_sampler"]
    chosen = video[sample_indices(len(video), s["n_frames"], **chunks, mode=mode, rng=rng)]
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    if s["transform"] == "crop":
        return random_crop(chosen, image_size=IMAGE_SIZE, flip=s["flip"], generator=generator)
    return whole_frame(chosen, image_size=IMAGE_SIZE)


def gallery_frames(s: dict, path: str, *, index: int = 0) -> Tensor:
    """Sample and transform the frames of a video of a gallery: (F,3,H,W)."""
    rng, video = np.random.default_rng([0, index]), decoded(path)
    chunks, mode = dict(frames_per_chunk=s["frames_per_chunk"]), s["test_sampler"]
    chosen = video[sample_indices(len(video), s["test_frames"], **chunks, mode=mode, rng=rng)]
    transform = centre_crop if s["transform"] == "crop" else whole_frame
    return transform(chosen, image_size=IMAGE_SIZE)


def word_ids(s: dict, captions: list[str]) -> Tensor:
    """Number the words; a caption that is too long is cut and keeps its end token: (B,W)."""
    W, rows = min(s["max_words"] or MAX_WORDS, MAX_WORDS), []
    for caption in captions:
        ids = [START, *(WORDS.index(word) + 2 for word in caption.split()), END]
        ids = ids if len(ids) <= W else [*ids[: W - 1], END]
        rows.append(ids + [0] * (W - len(ids)))
    return torch.tensor(rows)


# The model


def unit(x: Tensor) -> Tensor:
    """Scale vectors to length 1."""
    return x / x.norm(dim=-1, keepdim=True)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """Apply a LayerNorm."""
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """Apply a linear layer."""
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def attend(w: Weights, name: str, x: Tensor, source: Tensor, *, causal: bool = False) -> Tensor:
    """Let x (…,n,D) read the source (…,m,D)."""
    parts = zip(
        (x, source, source), *(w[f"{name}.in_proj_{p}"].chunk(3) for p in ("weight", "bias"))
    )
    q, k, v = (F.linear(*part).unflatten(-1, (HEADS, -1)).transpose(-2, -3) for part in parts)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    return linear(w, f"{name}.out_proj", (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2))


def layers_of(w: Weights, stack: str) -> list[str]:
    """Name the layers of a stack."""
    numbers = {name.removeprefix(stack).split(".")[1] for name in w if name.startswith(f"{stack}.")}
    return [f"{stack}.{number}" for number in range(len(numbers))]


def clip_block(w: Weights, name: str, kept: Tensor, x: Tensor, *, causal: bool = False) -> Tensor:
    """Run a block of CLIP: attention to the normed x, whose answer is added to what was kept."""
    x = norm(w, f"{name}.ln_1", x)
    x = kept + attend(w, f"{name}.attn", x, x, causal=causal)
    hidden = linear(w, f"{name}.mlp.c_fc", norm(w, f"{name}.ln_2", x))
    return x + linear(w, f"{name}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))


def frame_tokens(w: Weights, frames: Tensor) -> Tensor:
    """Cut frames (B,F,3,H,W) into patches and put [CLS] before them: (B,F,L,D)."""
    kernel = w[f"{VISUAL}.conv1.weight"]
    patches = F.conv2d(frames.flatten(0, 1), kernel, stride=kernel.shape[-1]).flatten(2).mT
    cls = w[f"{VISUAL}.class_embedding"].expand(len(patches), 1, -1)
    x = torch.cat([cls, patches], 1) + w[f"{VISUAL}.positional_embedding"]
    return norm(w, f"{VISUAL}.ln_pre", x).unflatten(0, frames.shape[:2])


def frame_vectors(w: Weights, s: dict, frames: Tensor) -> Tensor:
    """Compute p̄ (B,F,D) of Eq. 2; with `model` clip, each frame's [CLS]."""
    x, P = frame_tokens(w, frames), s["frames_per_chunk"]
    (B, n, L), with_cube = x.shape[:3], s["model"] == "prompt_switch"
    if with_cube:
        x = torch.cat([x, w["hook.cube.cube"].repeat(n // P, 1, 1).expand(B, -1, -1, -1)], 2)
    for block in layers_of(w, f"{VISUAL}.transformer.resblocks"):
        turned = x
        if with_cube and s["switch"]:
            cube = x[:, :, L:].unflatten(1, (n // P, P)).transpose(2, 3).flatten(1, 2)
            turned = torch.cat([x[:, :, :L], cube], 2)
        x = clip_block(w, block, x if s.get("residual") == "kept" else turned, turned)
    cls = x[:, :, 0]
    if with_cube and s["aggregate"] == "prompts":
        C = n // P if s["aggregate_over"] == "chunk" else 1
        askers, prompts = (part.unflatten(1, (C, n // C)) for part in (cls, x[:, :, L:]))
        answers = attend(w, "aggregation.attention", askers, prompts.flatten(2, 3))
        cls = cls + answers.flatten(1, 2)
    return norm(w, f"{VISUAL}.ln_post", cls)


def video_features(w: Weights, s: dict, frames: Tensor, *, k: int = 0) -> dict[str, Tensor]:
    """Compute what is known of videos (B,F,3,H,W); k: how many frames are drawn for the mean."""
    vectors, proj = frame_vectors(w, s, frames), w[f"{VISUAL}.proj"]
    before = s["frame_norm"] == "before_projection"
    joint = (unit(vectors) if before else vectors) @ proj
    if 0 < k < joint.shape[1]:
        drawn = torch.rand(joint.shape[:2]).argsort(1)[:, :k].sort(1).values
        joint = joint[torch.arange(len(joint))[:, None], drawn]
    pooled = unit((joint if before else unit(joint)).mean(1))
    memory = vectors if s["captioner_reads"] == "width" else vectors @ proj
    return dict(pooled=pooled, frames=joint, memory=memory)


def embed_words(w: Weights, ids: Tensor) -> Tensor:
    """Add the vectors of words and of places: (B,W,width)."""
    places = w["clip.model.positional_embedding"][: ids.shape[1]]
    return w["clip.model.token_embedding.weight"][ids] + places


def text_vectors(w: Weights, ids: Tensor) -> Tensor:
    """Compute CLIP's vectors of texts, of any length: (B,E)."""
    x = embed_words(w, ids)
    for block in layers_of(w, "clip.model.transformer.resblocks"):
        x = clip_block(w, block, x, x, causal=True)
    at_end = norm(w, "clip.model.ln_final", x)[torch.arange(len(ids)), (ids == END).int().argmax(1)]
    return at_end @ w["clip.model.text_projection"]


def similarity(s: dict, texts: Tensor, video: dict[str, Tensor]) -> Tensor:
    """Compare texts (Q,E) with videos, by the mean or by the best frames: (Q,N)."""
    if s["fusion"] == "mean":
        return unit(texts) @ video["pooled"].T
    frames = unit(video["frames"])
    best = (frames @ unit(texts).T).topk(s["best_frames"], 1).indices  # (N,k,Q)
    sums = torch.stack([frames[n][best[n]].sum(0) for n in range(len(frames))], 1)  # (Q,N,E)
    return (unit(sums) * unit(texts)[:, None]).sum(-1)


def caption_scores(w: Weights, ids: Tensor, memory: Tensor) -> Tensor:
    """Score each next word (B,W-1,V); the words come without gradient (D9)."""
    if "captioner.memory_projection.weight" in w:
        memory = linear(w, "captioner.memory_projection", memory)
    x = norm(w, "captioner.prenorm", embed_words(w, ids[:, :-1]).detach())
    for layer in layers_of(w, "captioner.decoder.layers"):
        x = norm(w, f"{layer}.norm1", x + attend(w, f"{layer}.self_attn", x, x, causal=True))
        x = norm(w, f"{layer}.norm2", x + attend(w, f"{layer}.multihead_attn", x, memory))
        hidden = linear(w, f"{layer}.linear1", x).relu()
        x = norm(w, f"{layer}.norm3", x + linear(w, f"{layer}.linear2", hidden))
    return linear(w, "captioner.output", norm(w, "captioner.decoder.norm", x))


# The losses


def word_weights(s: dict, ids: Tensor, corpus: dict[str, list[list[int]]]) -> Tensor:
    """Weigh the words that are predicted (B,W-1); `corpus`: the words of each video's captions."""
    top, weights = math.log(len(corpus)), torch.zeros(len(ids), ids.shape[1] - 1)
    df = Counter(word for texts in corpus.values() for word in {w for text in texts for w in text})
    idf = {word: max(top - math.log(n), s["tfidf_floor"] * top) for word, n in df.items()}
    idf[END] = s["tfidf_end"] * top
    frequent = {START, END, *(WORDS.index(word) + 2 for word in FREQUENT)}
    for row, caption in zip(weights, ids.tolist()):
        words = predicted(caption)
        for place, word in enumerate(words):
            row[place] = dict(
                none=1.0,
                frequent=0.25 if word in frequent else 1.0,
                tfidf=words.count(word) / len(words) * idf[word],
            )[s["caption_weights"]]
    return weights


def predicted(caption: list[int]) -> list[int]:
    """Take the words after the start, up to and with the end."""
    return caption[1 : caption.index(END) + 1]


def losses(w: Weights, s: dict, frames: Tensor, ids: Tensor, corpus: dict) -> dict[str, Tensor]:
    """Compute Eq. 4, 5 and 6 of a batch."""
    video = video_features(w, s, frames, k=s["k"] if s["model"] == "prompt_switch" else 0)
    logits = similarity(s, text_vectors(w, ids), video) * w["clip.model.logit_scale"].exp()
    pairs = torch.arange(len(ids))
    contrastive = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
    if not any(name.startswith("captioner.") for name in w):
        return dict(loss=contrastive, contrastive=contrastive)
    log_p = caption_scores(w, ids, video["memory"]).log_softmax(-1)
    nll = -log_p.gather(2, ids[:, 1:, None])[..., 0]
    weights = word_weights(s, ids, corpus)
    caption = (weights * nll).sum()
    caption = caption / (weights.sum() if s["caption_reduction"] == "token_mean" else len(ids))
    return dict(loss=contrastive + s["lam"] * caption, contrastive=contrastive, caption=caption)


# The steps


def rate(s: dict, step: int, steps: int) -> float:
    """Compute the share of the highest rate: a linear rise, then a cosine."""
    warmup = int(s["warmup"] * steps)
    if step < warmup:
        return (step if s["warmup_from_zero"] else step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))


@torch.no_grad()
def adamw(s: dict, w: Weights, moments: dict, step: int, share: float) -> None:
    """Change the weights, as PyTorch's AdamW or as that of the transformers library (D20)."""
    released, t = s["optimizer"] == "adamw_transformers", step + 1
    for name, p in w.items():
        if p.grad is None:
            continue
        lr = share * s["lr_clip" if name.startswith(("clip.", "aggregation.")) else "lr_new"]
        m, v = moments.setdefault(name, (torch.zeros_like(p), torch.zeros_like(p)))
        m.mul_(0.9).add_(p.grad, alpha=0.1)
        v.mul_(0.999).add_(p.grad**2, alpha=0.001)
        correction = math.sqrt(1 - 0.999**t)
        if released:
            p -= lr * correction / (1 - 0.9**t) * m / (v.sqrt() + 1e-6)
            p *= 1 - lr * s["weight_decay"]
        else:
            p *= 1 - lr * s["weight_decay"]
            p -= lr / (1 - 0.9**t) * m / (v.sqrt() / correction + 1e-8)


def batches(s: dict, pairs: Triples) -> list[tuple[Tensor, Tensor]]:
    """Make all batches of a run: frames (B,F,3,H,W) and ids (B,W)."""
    ids, found, epoch = [video_id for video_id, _, _ in pairs], [], 0
    plan = dict(batch_size=s["batch_size"], seed=s["seed"], repeats=s["repeats"])
    steps = s["steps"] or s["epochs"] * len(EpochBatches(ids, **plan))
    while len(found) < steps:
        for batch in EpochBatches(ids, **plan, epoch=epoch):
            frames = [training_frames(s, pairs[i][1], epoch=epoch, index=i) for i in batch]
            found.append((torch.stack(frames), word_ids(s, [pairs[i][2] for i in batch])))
        epoch += 1
    return found[:steps]


class Step(NamedTuple):
    """Hold what a step leaves."""

    row: dict[str, float]  # of the log
    weights: Weights  # that are trained
    kept: Weights  # that are evaluated and kept: their moving average, if there is one


def corpus_of(pairs: Triples) -> dict[str, list[list[int]]]:
    """Collect the words of each video's captions."""
    words = {}
    for video_id, _, caption in pairs:
        [ids] = word_ids(dict(max_words=None), [caption])
        words.setdefault(video_id, []).append(predicted(ids.tolist()))
    return words


def train_by_hand(s: dict, start: Weights, pairs: Triples) -> list[Step]:
    """Make all steps of a run."""
    w = {name: p.detach().clone().requires_grad_() for name, p in start.items()}
    kept, moments, found = {name: p.detach().clone() for name, p in w.items()}, {}, []
    plan, corpus = batches(s, pairs), corpus_of(pairs)
    parts = 1 if s["grad_cache"] else s["accumulate"]
    torch.manual_seed(s["seed"])
    for number, (frames, ids) in enumerate(plan):
        row = Counter(logit_scale=w["clip.model.logit_scale"].exp().item())
        for p in w.values():
            p.grad = None
        for part in zip(frames.chunk(parts), ids.chunk(parts)):
            terms = losses(w, s, *part, corpus)
            (terms["loss"] / parts).backward()
            row.update({name: term.item() / parts for name, term in terms.items()})
        gradients = [p.grad for p in w.values() if p.grad is not None]
        size = torch.stack([g.norm() for g in gradients]).norm().item()
        if s["clip_grad"] and size > s["clip_grad"]:
            for g in gradients:
                g *= s["clip_grad"] / size
        share = rate(s, number, len(plan))
        adamw(s, w, moments, number, share)
        if s["max_logit_scale"]:
            w["clip.model.logit_scale"].data.clamp_(max=math.log(s["max_logit_scale"]))
        now = {name: p.detach().clone() for name, p in w.items()}
        kept = {name: s["ema"] * kept[name] + (1 - s["ema"]) * p for name, p in now.items()}
        found.append(Step(dict(row, grad_norm=size, lr=share * s["lr_new"]), now, kept))
    return found


# An evaluation


@torch.no_grad()
def compare_by_hand(w: Weights, s: dict, pairs: Triples) -> tuple[Tensor, dict, list[int]]:
    """Compare captions with videos: (Q,N), the videos' features, and the video of each caption."""
    paths = {video_id: path for video_id, path, _ in pairs}
    frames = [gallery_frames(s, path, index=i) for i, path in enumerate(paths.values())]
    video = video_features(w, s, torch.stack(frames))
    texts = text_vectors(w, word_ids(s, [caption for _, _, caption in pairs]))
    owners = [[*paths].index(video_id) for video_id, _, _ in pairs]
    return similarity(s, texts, video), video | dict(texts=texts), owners


def metrics_by_hand(sims: Tensor, owners: list[int], margin: float = 0.0) -> dict[str, float]:
    """Count at which place each caption finds its video, and each video its best caption.

    Wrong ones count that are more similar by the margin.
    """
    t2v = [1 + (row > row[n] + margin).sum().item() for row, n in zip(sims, owners)]
    right = torch.tensor(owners)[:, None] == torch.arange(sims.shape[1])
    best = sims.masked_fill(~right, -math.inf).amax(0)
    v2t = ((sims > best + margin) & ~right).sum(0).add(1).tolist()
    if margin < 0:  # the right one is no wrong one
        t2v = [rank - 1 for rank in t2v]
    found, total = {}, 0
    for name, ranks in dict(t2v=t2v, v2t=v2t).items():
        for k in (1, 5, 10):
            found[f"{name}/R@{k}"] = 100 * sum(rank <= k for rank in ranks) / len(ranks)
            total += found[f"{name}/R@{k}"]
        found[f"{name}/MnR"] = sum(ranks) / len(ranks)
    return found | {"Meta Sum": total}


def wrong_metrics(found: dict[str, float], sims: Tensor, owners: list[int]) -> list[str]:
    """Name the metrics that are not those by hand; near ties may fall in either order."""
    bounds = [metrics_by_hand(sims, owners, margin) for margin in (-1e-4, 1e-4)]
    return [
        name
        for name in bounds[0]
        if not min(b[name] for b in bounds) - 1e-6
        <= found[name]
        <= max(b[name] for b in bounds) + 1e-6
    ]
