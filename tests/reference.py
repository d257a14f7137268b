"""Prompt Switch as section 3 of the paper writes it, slowly: one vector at a time.

One video, frame, head, prompt and token after the other, in loops. Where the released code differs
from the paper, `official` chooses it. The weights `w` go by the names of the package's model.
"""

import math

import torch
from torch import Tensor

Weights, Vectors = dict[str, Tensor], list[Tensor]
VISUAL = "clip.model.visual"


# Layers, on one vector or a list of vectors


def unit(x: Tensor) -> Tensor:
    """Scale a vector to length 1."""
    return x / (x * x).sum().sqrt()


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """Apply a linear layer."""
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def quick_gelu(x: Tensor) -> Tensor:
    """Apply OpenAI's approximation of GELU."""
    return x / (1 + torch.exp(-1.702 * x))


def relu(x: Tensor) -> Tensor:
    """Apply ReLU."""
    return x.clamp_min(0)


def softmax(x: Tensor) -> Tensor:
    """Turn scores into shares."""
    e = torch.exp(x - x.max())
    return e / e.sum()


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """Apply a LayerNorm."""
    x = x - x.mean()
    return x / ((x * x).mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def layers_of(w: Weights, stack: str) -> list[str]:
    """Return the names of the layers of a stack."""
    numbers = {name.removeprefix(stack).split(".")[1] for name in w if name.startswith(f"{stack}.")}
    return [f"{stack}.{number}" for number in range(len(numbers))]


def attention(
    w: Weights, name: str, heads: int, askers: Vectors, sources: Vectors, causal: bool = False
) -> Vectors:
    """Let each asker read the sources; if causal, those up to its own place."""
    size = len(askers[0]) // heads
    Wq, Wk, Wv = w[f"{name}.in_proj_weight"].chunk(3)
    bq, bk, bv = w[f"{name}.in_proj_bias"].chunk(3)
    keys = torch.stack([Wk @ source + bk for source in sources])
    values = torch.stack([Wv @ source + bv for source in sources])
    answers = []
    for place, asker in enumerate(askers):
        query = Wq @ asker + bq
        seen = place + 1 if causal else len(sources)
        parts = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = keys[:seen, part] @ query[part] / math.sqrt(size)
            parts.append(softmax(scores) @ values[:seen, part])
        answers.append(linear(w, f"{name}.out_proj", torch.cat(parts)))
    return answers


def clip_block(
    w: Weights, name: str, heads: int, kept: Vectors, tokens: Vectors, causal: bool = False
) -> Vectors:
    """Run a pre-norm block: tokens attend to each other, answers are added to what was kept."""
    normed = [layer_norm(w, f"{name}.ln_1", token) for token in tokens]
    answers = attention(w, f"{name}.attn", heads, normed, normed, causal)
    out = []
    for keep, answer in zip(kept, answers):
        x = keep + answer
        hidden = quick_gelu(linear(w, f"{name}.mlp.c_fc", layer_norm(w, f"{name}.ln_2", x)))
        out.append(x + linear(w, f"{name}.mlp.c_proj", hidden))
    return out


# Section 3.1: videos


def frame_tokens(w: Weights, frame: Tensor) -> Vectors:
    """Return [CLS] and the patches of one frame (3,H,W)."""
    kernel = w[f"{VISUAL}.conv1.weight"]
    n, (_, height, width) = kernel.shape[-1], frame.shape
    tokens = [w[f"{VISUAL}.class_embedding"]]
    for y in range(0, height, n):
        for x in range(0, width, n):
            tokens.append((kernel * frame[:, y : y + n, x : x + n]).sum((1, 2, 3)))
    places = w[f"{VISUAL}.positional_embedding"]
    return [
        layer_norm(w, f"{VISUAL}.ln_pre", token + place) for token, place in zip(tokens, places)
    ]


def encode_chunk(
    w: Weights, heads: int, frames: Tensor, official: bool
) -> tuple[Vectors, list[Vectors]]:
    """Return the final [CLS] of each of P frames (P,3,H,W) and the final prompt cube, in rows."""
    cube, P = w["hook.cube.cube"], len(frames)
    V = [frame_tokens(w, frame) for frame in frames]
    prompts = [[cube[i, j] for j in range(P)] for i in range(P)]
    L = len(V[0])
    for block in layers_of(w, f"{VISUAL}.transformer.resblocks"):
        switched = [[prompts[j][i] for j in range(P)] for i in range(P)]  # Eq. 1
        kept = prompts if official else switched
        for i in range(P):
            x = clip_block(w, block, heads, V[i] + kept[i], V[i] + switched[i])
            V[i], prompts[i] = x[:L], x[L:]
    return [V[i][0] for i in range(P)], prompts


def encode_video(
    w: Weights, heads: int, frames: Tensor, official: bool
) -> tuple[Vectors, Vectors, Tensor]:
    """Return each frame's p̄ (width D) and feature, and the feature of a video (F,3,H,W).

    Features have width E and length 1.
    """
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
    words, places = w["clip.model.token_embedding.weight"], w["clip.model.positional_embedding"]
    return [words[word] + places[i] for i, word in enumerate(ids)]


def encode_text(w: Weights, heads: int, ids: list[int], end: int) -> Tensor:
    """Return CLIP's text feature: the vector at the first end token, projected, of unit norm."""
    x = embed_words(w, ids)
    for block in layers_of(w, "clip.model.transformer.resblocks"):
        x = clip_block(w, block, heads, x, x, causal=True)
    at_end = layer_norm(w, "clip.model.ln_final", x[ids.index(end)])
    return unit(at_end @ w["clip.model.text_projection"])


def decoder_layer(w: Weights, name: str, heads: int, x: Vectors, memory: Vectors) -> Vectors:
    """Run a post-norm layer: words attend to the words before them, then to the frames."""

    def add_and_norm(x: Vectors, answers: Vectors, norm: str) -> Vectors:
        return [layer_norm(w, f"{name}.{norm}", t + answer) for t, answer in zip(x, answers)]

    x = add_and_norm(x, attention(w, f"{name}.self_attn", heads, x, x, causal=True), "norm1")
    x = add_and_norm(x, attention(w, f"{name}.multihead_attn", heads, x, memory), "norm2")
    hidden = [relu(linear(w, f"{name}.linear1", t)) for t in x]
    return add_and_norm(x, [linear(w, f"{name}.linear2", h) for h in hidden], "norm3")


def caption_logits(
    w: Weights, heads: int, ids: list[int], p_bar: Vectors, official: bool
) -> Tensor:
    """Score the word after each word of one caption (W-1,V); words come without gradient (D9)."""
    memory = [p @ w[f"{VISUAL}.proj"] for p in p_bar] if official else p_bar
    if "captioner.memory_projection.weight" in w:
        memory = [linear(w, "captioner.memory_projection", vector) for vector in memory]
    words = [word.detach() for word in embed_words(w, ids[:-1])]
    x = [layer_norm(w, "captioner.prenorm", word) for word in words]
    for layer in layers_of(w, "captioner.decoder.layers"):
        x = decoder_layer(w, layer, heads, x, memory)
    x = [layer_norm(w, "captioner.decoder.norm", t) for t in x]
    return torch.stack([linear(w, "captioner.output", t) for t in x])


def run(
    w: Weights, heads: dict[str, int], frames: Tensor, ids: Tensor, official: bool
) -> dict[str, Tensor]:
    """Compute features and logits of videos (B,F,3,H,W), all F frames in the mean, and (B,W)."""
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


def pick_loss(askers: Tensor, answers: Tensor, scale: Tensor) -> Tensor:
    """Compute one direction of Eq. 5: each asker i has to pick answer i; `scale` is 1/τ."""
    loss = 0
    for i, asker in enumerate(askers):
        scores = torch.stack([asker @ answer * scale for answer in answers])
        loss = loss - torch.log(softmax(scores)[i])
    return loss / len(askers)


def contrastive_loss(text: Tensor, video: Tensor, scale: Tensor) -> Tensor:
    """Compute Eq. 5; `scale` is 1/τ."""
    return (pick_loss(video, text, scale) + pick_loss(text, video, scale)) / 2


def predicted(caption: list[int], end: int) -> list[int]:
    """Return the words of Eq. 4: after the start, up to and with the first end token (D13)."""
    return caption[1 : caption.index(end) + 1]


def caption_loss(
    logits: Tensor, ids: Tensor, weights: list[list[float]], end: int, official: bool
) -> Tensor:
    """Compute Eq. 4 with a weight for each predicted word.

    That is the mean over captions of the sums over words, or (D11) the weighted mean of all words.
    """
    loss = 0
    for rows, caption, word_weights in zip(logits, ids.tolist(), weights):
        for scores, word, weight in zip(rows, predicted(caption, end), word_weights):
            loss = loss - weight * torch.log(softmax(scores)[word])
    return loss / (sum(sum(row) for row in weights) if official else len(ids))


def tfidf_weights(caption: list[int], corpus: list[list[list[int]]], end: int) -> list[float]:
    """Weigh predicted words by tf · idf, where idf = ln(videos / videos that have the word).

    The idf is at least 5 % of ln(videos), and 10 % of it for the end token.
    """
    words, top = predicted(caption, end), math.log(len(corpus))

    def videos_with(word: int) -> int:
        return sum(any(word in predicted(other, end) for other in captions) for captions in corpus)

    def idf(word: int) -> float:
        return 0.1 * top if word == end else max(top - math.log(videos_with(word)), 0.05 * top)

    return [words.count(word) / len(words) * idf(word) for word in words]


def frequent_weights(caption: list[int], frequent: list[int], end: int) -> list[float]:
    """Weigh predicted words by the fixed list (D12)."""
    return [0.25 if word in frequent else 1.0 for word in predicted(caption, end)]
