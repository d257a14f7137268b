"""Prompt Switch as section 3 of the paper writes it, slowly: one video, frame, head, prompt and token at a time.

Where the released code differs from the paper, `official` chooses it. The weights `w` go by the names of the package's model."""

import math

import torch
from torch import Tensor

Weights, Vectors = dict[str, Tensor], list[Tensor]
VISUAL = "clip.model.visual"


# Layers, on one vector or a list of vectors


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum().sqrt()


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def relu(x: Tensor) -> Tensor:
    return x.clamp_min(0)


def depth(w: Weights, stack: str) -> int:
    return len(
        {name.removeprefix(stack).split(".")[1] for name in w if name.startswith(f"{stack}.")}
    )


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max())
    return e / e.sum()


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    x = x - x.mean()
    return x / ((x * x).mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(
    w: Weights, name: str, heads: int, askers: Vectors, told: Vectors, causal: bool = False
) -> Vectors:
    """Multi-head attention: each asker reads all that is told or, if causal, what stands up to its own place."""
    size = len(askers[0]) // heads
    Wq, Wk, Wv = w[f"{name}.in_proj_weight"].chunk(3)
    bq, bk, bv = w[f"{name}.in_proj_bias"].chunk(3)
    keys, values = (
        torch.stack([Wk @ t + bk for t in told]),
        torch.stack([Wv @ t + bv for t in told]),
    )
    answers = []
    for i, asker in enumerate(askers):
        query, seen, parts = Wq @ asker + bq, i + 1 if causal else len(told), []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            parts.append(
                softmax(keys[:seen, part] @ query[part] / math.sqrt(size)) @ values[:seen, part]
            )
        answers.append(linear(w, f"{name}.out_proj", torch.cat(parts)))
    return answers


def clip_block(
    w: Weights, name: str, heads: int, kept: Vectors, tokens: Vectors, causal: bool = False
) -> Vectors:
    """One pre-norm block: the tokens attend to each other, and the answers are added to what was kept."""
    normed = [layer_norm(w, f"{name}.ln_1", t) for t in tokens]
    x = [k + a for k, a in zip(kept, attention(w, f"{name}.attn", heads, normed, normed, causal))]
    return [
        t
        + linear(
            w,
            f"{name}.mlp.c_proj",
            quick_gelu(linear(w, f"{name}.mlp.c_fc", layer_norm(w, f"{name}.ln_2", t))),
        )
        for t in x
    ]


# Section 3.1: videos


def frame_tokens(w: Weights, frame: Tensor) -> Vectors:
    """Return [CLS] and the patches of one frame (3,H,W)."""
    kernel = w[f"{VISUAL}.conv1.weight"]
    n = kernel.shape[-1]
    patches = [
        frame[:, y : y + n, x : x + n]
        for y in range(0, frame.shape[1], n)
        for x in range(0, frame.shape[2], n)
    ]
    tokens = [w[f"{VISUAL}.class_embedding"]] + [
        (kernel * patch).sum((1, 2, 3)) for patch in patches
    ]
    return [
        layer_norm(w, f"{VISUAL}.ln_pre", t + place)
        for t, place in zip(tokens, w[f"{VISUAL}.positional_embedding"])
    ]


def encode_chunk(
    w: Weights, heads: int, frames: Tensor, official: bool
) -> tuple[Vectors, list[Vectors]]:
    """Return the final [CLS] of each of P frames (P,3,H,W) and the rows of the final prompt cube."""
    cube, stack, P = w["hook.cube.cube"], f"{VISUAL}.transformer.resblocks", len(frames)
    V, prompts = (
        [frame_tokens(w, frame) for frame in frames],
        [[cube[i, j] for j in range(P)] for i in range(P)],
    )
    L = len(V[0])
    for layer in range(depth(w, stack)):
        switched = [[prompts[j][i] for j in range(P)] for i in range(P)]  # Eq. 1
        kept = prompts if official else switched
        x = [
            clip_block(w, f"{stack}.{layer}", heads, V[i] + kept[i], V[i] + switched[i])
            for i in range(P)
        ]
        V, prompts = [x[i][:L] for i in range(P)], [x[i][L:] for i in range(P)]
    return [V[i][0] for i in range(P)], prompts


def encode_video(
    w: Weights, heads: int, frames: Tensor, official: bool
) -> tuple[Vectors, Vectors, Tensor]:
    """Return p̄ of each frame (width D), each frame's feature and the video's feature (width E, unit norm) of one video (F,3,H,W)."""
    P, proj, p_bar = len(w["hook.cube.cube"]), w[f"{VISUAL}.proj"], []
    chunks = [encode_chunk(w, heads, frames[i : i + P], official) for i in range(0, len(frames), P)]
    for c, own_cube in chunks:
        cubes = [own_cube] if official else [cube for _, cube in chunks]
        P_hat = [prompt for cube in cubes for row in cube for prompt in row]
        for c_i in c:
            answer = attention(w, "aggregation.attention", heads, [c_i], P_hat)[0]
            p_bar.append(layer_norm(w, f"{VISUAL}.ln_post", c_i + answer))  # Eq. 2
    features = [unit(p @ proj) for p in p_bar]
    if official:
        x = sum(features) / len(features)
    else:
        x = sum(unit(p) for p in p_bar) / len(p_bar) @ proj  # Eq. 3
    return p_bar, features, unit(x)


# Texts, and section 3.2: captions


def embed_words(w: Weights, ids: list[int]) -> Vectors:
    """Return the token + position embeddings of one text."""
    return [
        w["clip.model.token_embedding.weight"][word] + w["clip.model.positional_embedding"][i]
        for i, word in enumerate(ids)
    ]


def encode_text(w: Weights, heads: int, ids: list[int], end: int) -> Tensor:
    """Return CLIP's text feature: the vector at the first end token, projected, of unit norm."""
    x, stack = embed_words(w, ids), "clip.model.transformer.resblocks"
    for layer in range(depth(w, stack)):
        x = clip_block(w, f"{stack}.{layer}", heads, x, x, causal=True)
    return unit(
        layer_norm(w, "clip.model.ln_final", x[ids.index(end)]) @ w["clip.model.text_projection"]
    )


def caption_logits(
    w: Weights, heads: int, ids: list[int], p_bar: Vectors, official: bool
) -> Tensor:
    """Score the word after each word of one caption (W-1,V); the words come in without gradient (D9)."""
    told = [p @ w[f"{VISUAL}.proj"] for p in p_bar] if official else p_bar
    if "captioner.memory_projection.weight" in w:
        told = [linear(w, "captioner.memory_projection", t) for t in told]
    x, stack = (
        [layer_norm(w, "captioner.prenorm", t.detach()) for t in embed_words(w, ids[:-1])],
        "captioner.decoder.layers",
    )
    for name in (f"{stack}.{i}" for i in range(depth(w, stack))):
        x = [
            layer_norm(w, f"{name}.norm1", t + a)
            for t, a in zip(x, attention(w, f"{name}.self_attn", heads, x, x, causal=True))
        ]
        x = [
            layer_norm(w, f"{name}.norm2", t + a)
            for t, a in zip(x, attention(w, f"{name}.multihead_attn", heads, x, told))
        ]
        x = [
            layer_norm(
                w,
                f"{name}.norm3",
                t + linear(w, f"{name}.linear2", relu(linear(w, f"{name}.linear1", t))),
            )
            for t in x
        ]
    return torch.stack(
        [linear(w, "captioner.output", layer_norm(w, "captioner.decoder.norm", t)) for t in x]
    )


def run(
    w: Weights, heads: dict[str, int], frames: Tensor, ids: Tensor, official: bool
) -> dict[str, Tensor]:
    """Compute all features and caption logits of videos (B,F,3,H,W), all F frames in the mean, with captions (B,W)."""
    end = len(w["clip.model.token_embedding.weight"]) - 1
    out = dict(text=[], frames=[], video=[], caption_logits=[])
    for video, caption in zip(frames, ids.tolist()):
        p_bar, features, x = encode_video(w, heads["vision"], video, official)
        out["frames"].append(torch.stack(features))
        out["video"].append(x)
        out["text"].append(encode_text(w, heads["text"], caption, end))
        out["caption_logits"].append(caption_logits(w, heads["text"], caption, p_bar, official))
    return {name: torch.stack(rows) for name, rows in out.items()}


# The losses


def contrastive_loss(text: Tensor, video: Tensor, scale: Tensor) -> Tensor:
    """Compute Eq. 5; `scale` is 1/τ."""
    B = len(text)
    v2t = (
        -sum(
            torch.log(softmax(torch.stack([video[i] @ text[j] * scale for j in range(B)]))[i])
            for i in range(B)
        )
        / B
    )
    t2v = (
        -sum(
            torch.log(softmax(torch.stack([text[i] @ video[j] * scale for j in range(B)]))[i])
            for i in range(B)
        )
        / B
    )
    return (v2t + t2v) / 2


def predicted(caption: list[int], end: int) -> list[int]:
    """Return the words of Eq. 4: after the start token, up to and including the first end token (D13)."""
    return caption[1 : caption.index(end) + 1]


def caption_loss(
    logits: Tensor, ids: Tensor, weights: list[list[float]], end: int, official: bool
) -> Tensor:
    """Compute Eq. 4 with a weight for each predicted word: the mean over captions of the sums over words, or (D11) the weighted mean over all words."""
    loss = 0
    for scores, caption, weight in zip(logits, ids.tolist(), weights):
        for l, word in enumerate(predicted(caption, end)):
            loss = loss - weight[l] * torch.log(softmax(scores[l])[word])
    return loss / (sum(sum(weight) for weight in weights) if official else len(ids))


def tfidf_weights(caption: list[int], corpus: list[list[list[int]]], end: int) -> list[float]:
    """Weigh predicted words by share of the caption · ln(videos / videos that have the word), the second at least 5 % of ln(videos), and 10 % of it for the end token."""
    said, top = predicted(caption, end), math.log(len(corpus))

    def videos_with(word):
        return sum(any(word in predicted(other, end) for other in captions) for captions in corpus)

    def idf(word):
        return 0.1 * top if word == end else max(top - math.log(videos_with(word)), 0.05 * top)

    return [said.count(word) / len(said) * idf(word) for word in said]


def frequent_weights(caption: list[int], frequent: list[int], end: int) -> list[float]:
    """Weigh predicted words by the fixed list (D12)."""
    return [0.25 if word in frequent else 1.0 for word in predicted(caption, end)]
