"""The method in NumPy and float64, written from the paper's equations; shares no code with the package.

Weights come under the official names (golden_cases.Case.state). Reference for what the golden files do not cover:
`insert_at`, `read_from`, chosen gated blocks, temperatures of some blocks, zero start.
"""

import math

import numpy as np

ERF = np.vectorize(math.erf)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * weight + bias


Apart = tuple[np.ndarray, np.ndarray]  # zero start: prompts (P, D), one gate tanh(a) for each head


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(
    x: np.ndarray, w: dict[str, np.ndarray], heads: int, temperature: float, apart: Apart | None = None
) -> np.ndarray:
    """softmax(q k^T / (sqrt(d) tau)) v for normed tokens (N, D), plus what they read from the prompts `apart`."""
    n, width = x.shape

    def project(tokens: np.ndarray) -> list[np.ndarray]:
        parts = np.split(tokens @ w["attn.qkv.weight"].T + w["attn.qkv.bias"], 3, axis=1)
        return [part.reshape(len(tokens), heads, width // heads).transpose(1, 0, 2) for part in parts]

    q, k, v = project(x)
    scale = math.sqrt(width // heads) * temperature
    mixed = softmax(q @ k.transpose(0, 2, 1) / scale) @ v
    if apart is not None:
        prompts, gates = apart
        _, k, v = project(layer_norm(prompts, w["norm1.weight"], w["norm1.bias"]))
        mixed = mixed + gates[:, None, None] * (softmax(q @ k.transpose(0, 2, 1) / scale) @ v)
    return mixed.transpose(1, 0, 2).reshape(n, width) @ w["attn.proj.weight"].T + w["attn.proj.bias"]


def block(
    x: np.ndarray, w: dict[str, np.ndarray], heads: int, temperature: float, apart: Apart | None = None
) -> np.ndarray:
    x = x + attention(layer_norm(x, w["norm1.weight"], w["norm1.bias"]), w, heads, temperature, apart)
    hidden = layer_norm(x, w["norm2.weight"], w["norm2.bias"]) @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    hidden = hidden * 0.5 * (1 + ERF(hidden / math.sqrt(2)))
    return x + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def embed(image: np.ndarray, state: dict[str, np.ndarray], patch: int) -> np.ndarray:
    """CLS and patch tokens (1 + N, D) with position embeddings, from an image (3, H, W)."""
    kernel = state["enc.patch_embed.proj.weight"].reshape(-1, 3 * patch * patch)
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    patches = [
        image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].ravel()
        for r in range(rows)
        for c in range(columns)
    ]
    tokens = np.stack(patches) @ kernel.T + state["enc.patch_embed.proj.bias"]
    return np.concatenate((state["enc.cls_token"][0], tokens)) + state["enc.pos_embed"][0]


def logits(
    image: np.ndarray,
    state: dict[str, np.ndarray],
    prompts: np.ndarray,
    gate_logits: dict[int, float],
    temperatures: dict[int, float],
    insert_at: int = 0,
    heads: int = 4,
    patch: int = 8,
    read_from: int | None = None,
) -> np.ndarray:
    """Class scores (C,) of one image, CLS read-out; gates and temperatures by block index, absent ones 1."""
    tokens = embed(image, state, patch)
    count, num_blocks = len(prompts), 1 + max(int(k.split(".")[2]) for k in state if k.startswith("enc.blocks."))
    for i in range(num_blocks if read_from is None else read_from + 1):
        weights = {k.split(".", 3)[3]: v for k, v in state.items() if k.startswith(f"enc.blocks.{i}.")}
        if i == insert_at:
            tokens = np.concatenate((tokens[:1], prompts, tokens[1:]))
        before = tokens
        tokens = block(tokens, weights, heads, temperatures.get(i, 1.0))
        if i in gate_logits:
            g = 1 / (1 + math.exp(-gate_logits[i]))
            tokens[1 : 1 + count] = g * tokens[1 : 1 + count] + (1 - g) * before[1 : 1 + count]
    feature = layer_norm(tokens, state["enc.norm.weight"], state["enc.norm.bias"])[0]
    return state["head.last_layer.weight"] @ feature + state["head.last_layer.bias"]


def zero_start_logits(
    image: np.ndarray,
    state: dict[str, np.ndarray],
    apart: dict[int, Apart],
    temperatures: dict[int, float],
    heads: int = 4,
    patch: int = 8,
    read_from: int = 3,
) -> np.ndarray:
    """Class scores (C,) of one image with zero-start prompts; prompts, gates and temperatures by block index."""
    tokens = embed(image, state, patch)
    for i in range(read_from + 1):
        weights = {k.split(".", 3)[3]: v for k, v in state.items() if k.startswith(f"enc.blocks.{i}.")}
        tokens = block(tokens, weights, heads, temperatures.get(i, 1.0), apart.get(i))
    feature = layer_norm(tokens, state["enc.norm.weight"], state["enc.norm.bias"])[0]
    return state["head.last_layer.weight"] @ feature + state["head.last_layer.bias"]
