"""The method in NumPy and float64, written from the paper's equations; shares no code with the package.

Weights come under the official names (golden_cases.Case.state). Reference for what the golden files do not cover:
`insert_at`, `read_from`, chosen gated blocks, temperatures of some blocks.
"""

import math

import numpy as np

ERF = np.vectorize(math.erf)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * weight + bias


def attention(x: np.ndarray, w: dict[str, np.ndarray], heads: int, temperature: float) -> np.ndarray:
    """softmax(q k^T / (sqrt(d) tau)) v for tokens (N, D)."""
    n, width = x.shape
    q, k, v = (
        part.reshape(n, heads, width // heads).transpose(1, 0, 2)
        for part in np.split(x @ w["attn.qkv.weight"].T + w["attn.qkv.bias"], 3, axis=1)
    )
    logits = q @ k.transpose(0, 2, 1) / math.sqrt(width // heads) / temperature
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    return mixed.transpose(1, 0, 2).reshape(n, width) @ w["attn.proj.weight"].T + w["attn.proj.bias"]


def block(x: np.ndarray, w: dict[str, np.ndarray], heads: int, temperature: float) -> np.ndarray:
    x = x + attention(layer_norm(x, w["norm1.weight"], w["norm1.bias"]), w, heads, temperature)
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
