# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Find the parts of a Vision Transformer that prompts need, in any model that has them.

No family is named here. The blocks are the one list of equal modules that hold a query projection; the patch
projection and the prefix tokens (CLS, registers, ...) are what stands before it.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import ArchitectureError

QUERY_NAMES = ("q_proj", "query", "qkv")
KEY_NAMES, VALUE_NAMES = ("k_proj", "key"), ("v_proj", "value")
QUERY_NORM_NAMES, KEY_NORM_NAMES = ("q_norm", "query_norm"), ("k_norm", "key_norm")
OUTPUT_NAMES = ("o_proj", "out_proj", "proj", "projection_layer")
NORM_NAMES = ("layernorm_before", "layer_norm1", "norm1", "layernorm1", "ln_1")  # before the attention of a block
BIAS_TABLE = "relative_position_bias_table"
PREFIX_NAMES = (
    "cls_token",
    "class_token",
    "class_embedding",
    "distillation_token",
    "dist_token",
    "register_tokens",
    "reg_token",
)


@dataclass(frozen=True)
class AttentionParts:
    """How one block makes queries, keys and values of its tokens, and what it asks to attend.

    Children are named rather than held: LoRA and quantization put other modules in their places.

    `block`, `attention`: the block and its module that holds the projections; `norm`: name in the block of the norm
    before the attention; `query`, `key`, `value`: names of the projections, `key` and `value` missing where `query` is
    one Linear for all three; `query_norm`, `key_norm`: norms behind them; `eager`: the attention function of the
    model's own module, where the attention asks transformers' AttentionInterface.
    """

    block: nn.Module
    attention: nn.Module
    norm: str | None
    query: str
    key: str | None
    value: str | None
    query_norm: str | None
    key_norm: str | None
    eager: Callable[..., Any] | None

    @property
    def asks_interface(self) -> bool:
        """Whether `attention.py` sees the queries, keys and values of this block."""
        return self.eager is not None

    @property
    def can_be_passive(self) -> bool:
        """Whether keys and values of tokens are just `key(norm(tokens))` and `value(norm(tokens))`."""
        known = {self.query, self.key, self.value, *OUTPUT_NAMES}
        others = [
            name for name, child in self.attention.named_children()
            if name not in known and any(True for _ in child.parameters()) and not hasattr(child, BIAS_TABLE)
        ]  # fmt: skip
        own = list(self.attention.parameters(recurse=False))
        return self.asks_interface and None not in (self.norm, self.key, self.value) and not others and not own

    @property
    def query_output(self) -> nn.Module:
        """The module whose output are the queries: after their norm, which would undo a scale put before it."""
        return self.attention.get_submodule(self.query_norm or self.query)

    @property
    def fused_output(self) -> bool:
        """Whether that output is (..., 3 D), with the queries first."""
        return self.query_norm is None and self.key is None

    def keys_and_values(self, prompts: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, H, P, d) of `prompts` (B, P, D), for heads of `width` d, where they can be passive."""
        normed = self.block.get_submodule(self.norm or "")(prompts)
        shape = (*prompts.shape[:2], -1, width)
        key, value = (self.attention.get_submodule(name or "")(normed) for name in (self.key, self.value))
        return key.view(shape).transpose(1, 2), value.view(shape).transpose(1, 2)


@dataclass(frozen=True)
class PositionBias:
    """A module that computes a bias (1, H, N, N) on the attention logits of one block, or of all when None."""

    module: nn.Module
    block: int | None


@dataclass(frozen=True)
class VisionTransformer:
    """The parts of one model.

    `blocks`: the L transformer blocks; `attentions`: the parts of each; `ancestors`: the modules that hold the
    blocks, the root first; `before`: the modules that run before them; `embeddings`: the one of these that holds
    the patch `projection`; `position_biases`: relative ones, if any; `hidden_size`: D; `num_prefix_tokens`: tokens
    that stand before the patches; `patch_values`: numbers in one patch (3 p p).
    """

    blocks: list[nn.Module]
    attentions: list[AttentionParts]
    ancestors: list[nn.Module]
    before: list[nn.Module]
    embeddings: nn.Module
    projection: nn.Module
    position_biases: list[PositionBias]
    hidden_size: int
    num_prefix_tokens: int
    patch_values: int

    @property
    def prompt_bound(self) -> float:
        """Prompts start uniform in (-v, v), v = sqrt(6 / (3 p p + D)), the patch projection's Xavier bound."""
        return math.sqrt(6.0 / (self.patch_values + self.hidden_size))


def find_vision_transformer(root: nn.Module, blocks_path: str | None = None) -> VisionTransformer:
    """Describe the Vision Transformer inside `root`.

    `blocks_path` is the dotted path of the list of blocks, for models with more than one.

    Raises:
        ArchitectureError: there is no such list, more than one, no patch projection before it, or a backbone class
            that reads the blocks one by one.
    """
    path = _find_blocks_path(root, blocks_path)
    blocks = list(root.get_submodule(path).children())
    attentions = [parts for block in blocks if (parts := _find_attention(block))]
    parents = path.split(".")[:-1]
    ancestors = [root.get_submodule(".".join(parents[:i])) for i in range(len(parents) + 1)]
    body, before = _body_and_modules_before(ancestors, path.split("."))
    if not before:
        raise ArchitectureError(
            f"{type(root).__name__}.{path} are transformer blocks, but no patch projection (a Conv2d, or a Linear "
            "named after patches) stands before them, so this is no Vision Transformer; prompts need one"
        )
    if hasattr(ancestors[-1], "out_features"):
        raise ArchitectureError(
            f"{type(ancestors[-1]).__name__} runs its blocks itself and cuts feature maps from them, prompts included;"
            " use a transformers whose backbone takes them from an encoder (DINOv3ViTBackbone: 5.4 or later)"
        )
    embeddings, projection = next((m, p) for m in before if (p := _patch_projection(m)) is not None)
    hidden_size = _in_features(attentions[0])
    return VisionTransformer(
        blocks=blocks,
        attentions=attentions,
        ancestors=ancestors,
        before=before,
        embeddings=embeddings,
        projection=projection,
        position_biases=_position_biases(root, blocks),
        hidden_size=hidden_size,
        num_prefix_tokens=_count_prefix_tokens(body, blocks, hidden_size),
        patch_values=projection.get_parameter("weight")[0].numel(),
    )


def _find_blocks_path(root: nn.Module, asked: str | None) -> str:
    found = list(_block_lists(root))
    stages = [path for path in found if any(part.isdigit() for part in path.split("."))]
    if stages:
        raise ArchitectureError(
            f"{type(root).__name__} has stages of blocks ({', '.join(stages)}), so it is a hierarchical transformer; "
            "extra tokens do not fit its windows. Use a plain Vision Transformer (ViT, DeiT, MAE, DINOv2, CLIP, ...)"
        )
    if asked is not None:
        if asked not in found:
            raise ArchitectureError(
                f"target_modules={asked!r} names no list of transformer blocks of {type(root).__name__}; "
                + (f"found: {', '.join(found)}" if found else "none was found")
            )
        return asked
    if len(found) == 1:
        return found[0]
    if found:
        raise ArchitectureError(
            f"{type(root).__name__} has several lists of transformer blocks: {', '.join(found)}; "
            "choose one with GatedPromptConfig(target_modules=...)"
        )
    raise ArchitectureError(
        f"{type(root).__name__} has no list of two or more equal transformer blocks with a query projection "
        f"({', '.join(QUERY_NAMES)}); gated prompts need a plain Vision Transformer (ViT, DeiT, MAE, DINOv2, ...)"
    )


def _block_lists(root: nn.Module) -> Iterator[str]:
    """Path of every list of equal blocks, outside decoders, text towers and other such lists."""
    inside: list[str] = []
    for path, module in root.named_modules():
        if any("decoder" in part or part.startswith("text") for part in path.split(".")):
            continue
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        blocks = list(module.children())
        if len(blocks) < 2 or len({_signature(block) for block in blocks}) != 1:
            continue
        if _find_attention(blocks[0]) and sum(isinstance(m, nn.Linear) for m in blocks[0].modules()) >= 4:
            inside.append(path)
            yield path


def _signature(block: nn.Module) -> tuple[object, ...]:
    return type(block), tuple((name, tuple(p.shape)) for name, p in block.named_parameters())


def _find_attention(block: nn.Module) -> AttentionParts | None:
    """The parts of the one attention of a block, or None where there is none, or more than one."""
    named = dict(block.named_modules())
    hits = [name for name in named if name.rpartition(".")[2] in QUERY_NAMES]
    if len(hits) != 1:
        return None
    parent, _, query = hits[0].rpartition(".")
    attention = named[parent]
    if query == "qkv" and getattr(attention, "q_bias", None) is not None:
        raise ArchitectureError(
            f"{type(attention).__name__} adds its query bias outside of its module `qkv`, where the attention "
            "temperature cannot reach it; use a model whose bias is part of qkv"
        )
    return AttentionParts(
        block=block,
        attention=attention,
        norm=_child(block, NORM_NAMES),
        query=query,
        key=_child(attention, KEY_NAMES),
        value=_child(attention, VALUE_NAMES),
        query_norm=_child(attention, QUERY_NORM_NAMES),
        key_norm=_child(attention, KEY_NORM_NAMES),
        eager=_eager_function(attention),
    )


def _child(module: nn.Module, names: tuple[str, ...]) -> str | None:
    children = dict(module.named_children())
    return next((name for name in names if not isinstance(children.get(name), (nn.Identity, type(None)))), None)


def _eager_function(attention: nn.Module) -> Callable[..., Any] | None:
    """The eager attention function of a module that asks AttentionInterface for the one to call, else None."""
    forward: Any = inspect.unwrap(type(attention).forward)
    code = getattr(forward, "__code__", None)
    if not hasattr(attention, "config") or code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
        return None
    eager: Callable[..., Any] | None = forward.__globals__.get("eager_attention_forward")
    return eager


def _in_features(parts: AttentionParts) -> int:
    width = getattr(parts.attention.get_submodule(parts.query), "in_features", None)
    if width is None:  # a projection of another kind: read the width off the block's own norm
        width = next(m for m in parts.block.modules() if isinstance(m, nn.LayerNorm)).normalized_shape[0]
    return int(width)


def _patch_projection(module: nn.Module) -> nn.Conv2d | nn.Conv3d | nn.Linear | None:
    """The first module in here that turns patches into tokens.

    A Linear has to say so by its name: text and audio models have Linears before their blocks as well.
    """
    for path, part in module.named_modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)) or (isinstance(part, nn.Linear) and "patch" in path):
            return part
    return None


def _position_biases(root: nn.Module, blocks: list[nn.Module]) -> list[PositionBias]:
    """All modules of `root` that hold a table of relative position biases.

    Raises:
        ArchitectureError: an attention holds its table itself, so that no hook can widen what it makes of it.
    """
    owner = {id(module): index for index, block in enumerate(blocks) for module in block.modules()}
    found = [m for m in root.modules() if BIAS_TABLE in m._parameters]
    for module in found:
        if any(name in QUERY_NAMES for name, _ in module.named_children()):
            raise ArchitectureError(
                f"{type(module).__name__} adds a relative position bias of a fixed number of tokens in its forward, "
                "where there is no way to make room for prompts; use a model whose bias is a module of its own "
                "(transformers' BEiT) or that has none"
            )
    return [PositionBias(module, owner.get(id(module))) for module in found]


def _body_and_modules_before(ancestors: list[nn.Module], path: list[str]) -> tuple[nn.Module, list[nn.Module]]:
    """The innermost ancestor with a projection among the siblings that come before the blocks, and those siblings."""
    for ancestor, name in zip(reversed(ancestors), reversed(path), strict=True):
        children = dict(ancestor.named_children())
        before = list(children.values())[: list(children).index(name)]
        if any(_patch_projection(child) is not None for child in before):
            return ancestor, before
    return ancestors[0], []


def _count_prefix_tokens(body: nn.Module, blocks: list[nn.Module], hidden_size: int) -> int:
    inner = {id(p) for block in blocks for p in block.parameters()}
    return sum(
        p.numel() // hidden_size
        for name, p in body.named_parameters()
        if id(p) not in inner and name.rpartition(".")[2] in PREFIX_NAMES
    )
