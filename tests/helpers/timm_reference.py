"""State dicts with timm's names, and what a ViT with these weights computes: plain torch, no transformers."""

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]


def random_state(
    width: int = 16,
    depth: int = 3,
    mlp_width: int = 40,
    patch: int = 4,
    image: int = 12,
    channels: int = 3,
    qkv_bias: bool = True,
    labels: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> State:
    """Every tensor random. The patch projection is small, so that the norms' epsilon shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (image // patch) ** 2, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        shapes |= {f"blocks.{i}.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        for name, (rows, columns) in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (mlp_width, width),
            "mlp.fc2": (width, mlp_width),
        }.items():
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
        if not qkv_bias:
            del shapes[f"blocks.{i}.attn.qkv.bias"]
    if labels is not None:
        shapes |= {"head.weight": (labels, width), "head.bias": (labels,)}
    embedding = ("cls_token", "pos_embed", "patch_embed")
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        .mul(0.02 if name.startswith(embedding) else 0.3)
        .to(dtype)
        for name, shape in shapes.items()
    }


def tokens(s: State, pixels: torch.Tensor, heads: int, eps: float = 1e-6) -> torch.Tensor:
    """CLS and patch tokens (B, 1 + N, D) after the last norm, of images (B, channels, H, W)."""
    batch, width, patch = len(pixels), s["cls_token"].shape[-1], s["patch_embed.proj.weight"].shape[-1]
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2)  # row by row
    patches = patches @ s["patch_embed.proj.weight"].flatten(1).T + s["patch_embed.proj.bias"]
    x = torch.cat((s["cls_token"].expand(batch, -1, -1), patches), dim=1) + s["pos_embed"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]
        )

    for i in range(sum(name.endswith("norm1.weight") for name in s)):
        block = f"blocks.{i}."
        qkv = norm(f"{block}norm1", x) @ s[f"{block}attn.qkv.weight"].T + s.get(f"{block}attn.qkv.bias", 0)
        mixed = torch.empty_like(x)
        size = width // heads
        for head in range(heads):  # rows of qkv: all queries, all keys, all values; in each, head after head
            q, k, v = (qkv[..., part * width + head * size :][..., :size] for part in range(3))
            weights = torch.softmax(q @ k.transpose(1, 2) / size**0.5, dim=-1)
            mixed[..., head * size : (head + 1) * size] = weights @ v
        x = x + mixed @ s[f"{block}attn.proj.weight"].T + s[f"{block}attn.proj.bias"]
        hidden = norm(f"{block}norm2", x) @ s[f"{block}mlp.fc1.weight"].T + s[f"{block}mlp.fc1.bias"]
        x = x + F.gelu(hidden) @ s[f"{block}mlp.fc2.weight"].T + s[f"{block}mlp.fc2.bias"]
    return norm("norm", x)


def logits(s: State, pixels: torch.Tensor, heads: int) -> torch.Tensor:
    """Class scores (B, C) of the linear head on CLS."""
    return tokens(s, pixels, heads)[:, 0] @ s["head.weight"].T + s["head.bias"]
