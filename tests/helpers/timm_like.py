# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A small Vision Transformer laid out as timm lays out its own: fused qkv, blocks in a Sequential, no outputs object.

timm needs torchvision; this stands in for it wherever that is not installed.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: bool, num_prefix_tokens: int) -> None:
        super().__init__()
        self.heads, self.num_prefix_tokens = heads, num_prefix_tokens
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, rope: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(self.q_norm(q), rope), self.rotate(self.k_norm(k), rope)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def rotate(self, x: torch.Tensor, rope: torch.Tensor | None) -> torch.Tensor:
        """Turn pairs of channels of the tokens after the prefix; `rope` (N, 2 d) holds sines, then cosines."""
        if rope is None:
            return x
        prefix, x = x[:, :, : self.num_prefix_tokens], x[:, :, self.num_prefix_tokens :]
        sines, cosines = rope.chunk(2, dim=-1)
        swapped = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return torch.cat((prefix, x * cosines + swapped * sines), dim=2)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: bool, num_prefix_tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qk_norm, num_prefix_tokens)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, rope: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rope=rope)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimmLikeViT(nn.Module):
    """`global_pool` is "token" or "avg", as in timm; `distilled` adds timm's `dist_token` and `head_dist`.

    With `rotary` the blocks get rotary embeddings as timm's EVA (and its DINOv3) does.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        image_size: int,
        patch_size: int,
        labels: int,
        registers: int = 0,
        distilled: bool = False,
        qk_norm: bool = False,
        rotary: bool = False,
        global_pool: str = "token",
    ) -> None:
        super().__init__()
        self.global_pool = global_pool
        self.rotary = rotary
        self.num_prefix_tokens = 1 + registers + distilled
        self.patch_embed = PatchEmbed(width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // patch_size) ** 2, width))
        self.norm_pre = nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, 4, qk_norm, self.num_prefix_tokens) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, labels)
        self.head_dist = nn.Linear(width, labels) if distilled else None

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        patches = self.patch_embed(pixels) + self.pos_embed
        prefix = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        tokens = torch.cat([t.expand(len(pixels), -1, -1) for t in prefix] + [patches], dim=1)
        angles = torch.arange(patches.shape[1])[:, None] * torch.linspace(0.1, 1.0, patches.shape[2] // 8)
        angles = angles.repeat_interleave(2, dim=-1)  # one for each channel of a head
        return self.norm_pre(tokens), torch.cat((angles.sin(), angles.cos()), dim=-1) if self.rotary else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x, rope = self.embed(pixels)
        for block in self.blocks:
            x = block(x, rope=rope)
        x = self.norm(x)
        if self.global_pool == "avg":
            return self.head(x[:, self.num_prefix_tokens :].mean(dim=1))
        if self.head_dist is not None:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        return self.head(x[:, 0])

    def forward_intermediates(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (B, D, H, W) after each block, as timm's method of this name makes them."""
        x, rope = self.embed(pixels)
        maps, side = [], int(self.pos_embed.shape[1] ** 0.5)
        for block in self.blocks:
            x = block(x, rope=rope)
            patches = x[:, self.num_prefix_tokens :]
            maps.append(patches.reshape(len(x), side, side, -1).permute(0, 3, 1, 2))
        return maps
