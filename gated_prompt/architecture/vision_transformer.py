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

from torch import nn

from ..errors import ArchitectureError
from .prefix import count_prefix_tokens
from .towers import Tower, find_tower

QUERY_NAMES = ("q_proj", "query", "qkv")
KEY_NAMES, VALUE_NAMES = ("k_proj", "key"), ("v_proj", "value")
QUERY_NORM_NAMES, KEY_NORM_NAMES = ("q_norm", "query_norm"), ("k_norm", "key_norm")
OUTPUT_NAMES = ("o_proj", "out_proj", "proj", "projection_layer")
NORM_NAMES = ("layernorm_before", "layer_norm1", "norm1", "layernorm1", "ln_1")  # before the attention of a block
OWN_POSITIONS = ("get_bias", "get_position_ids")  # methods of timm's relative biases and of V-JEPA 2's attention
BIAS_TABLE = "relative_position_bias_table"


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
    def uses_interface(self) -> bool:
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
        return self.uses_interface and None not in (self.norm, self.key, self.value) and not others and not own

    @property
    def query_output(self) -> nn.Module:
        """The module whose output are the queries: after their norm, which would undo a scale put before it."""
        return self.attention.get_submodule(self.query_norm or self.query)

    @property
    def fused_output(self) -> bool:
        """Whether that output is (..., 3 D), with the queries first."""
        return self.query_norm is None and self.key is None


@dataclass(frozen=True)
class PositionBias:
    """A module that computes a bias (1, H, N, N) on the attention logits of one block, or of all when None."""

    module: nn.Module
    block: int | None


@dataclass(frozen=True)
class VisionTransformer:
    """The parts of one model.

    `tower`: what holds and feeds the blocks; `blocks`: the L transformer blocks; `attentions`: the parts of each;
    `ancestors`: the modules that hold the blocks, the root first; `before`: the modules that run before them;
    `embeddings`: the one of these that holds the patch `projection`; `position_biases`: relative ones, if any;
    `hidden_size`: D; `num_prefix_tokens`: tokens that stand before the patches; `patch_values`: numbers in one patch
    (3 p p).
    """

    tower: Tower
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
    lists = {path: _width(root.get_submodule(path)) for path in _block_lists(root)}
    tower = find_tower(root, lists, blocks_path)
    blocks = list(root.get_submodule(tower.path).children())
    _refuse_what_has_no_room(root, tower)
    hidden_size = lists[tower.path]
    return VisionTransformer(
        tower=tower,
        blocks=blocks,
        attentions=[parts for block in blocks if (parts := _find_attention(block))],
        ancestors=tower.ancestors,
        before=tower.before,
        embeddings=tower.embeddings,
        projection=tower.projection,
        position_biases=_position_biases(root, blocks),
        hidden_size=hidden_size,
        num_prefix_tokens=count_prefix_tokens(tower, blocks[0], hidden_size),
        patch_values=tower.patch_values,
    )


def _block_lists(root: nn.Module) -> Iterator[str]:
    """Path of every list of equal blocks, outside other such lists."""
    inside: list[str] = []
    for path, module in root.named_modules():
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


def _width(blocks: nn.Module) -> int:
    """Width of the tokens that these blocks read: what goes into the query projection."""
    block = next(blocks.children())
    query = next(m for name, m in block.named_modules() if name.rpartition(".")[2] in QUERY_NAMES)
    width = getattr(query, "in_features", None)
    return int(next(p for p in query.parameters() if p.ndim > 1).shape[-1] if width is None else width)


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


def _refuse_what_has_no_room(root: nn.Module, tower: Tower) -> None:
    """Refuse what would go wrong, and in some cases silently, where hooks do not reach.

    Raises:
        ArchitectureError: a backbone cuts maps from its blocks, one by one; or tables for a fixed number of tokens
            are added between the blocks or inside their attention.
    """
    loop = tower.ancestors[-1]
    if hasattr(loop, "out_features"):
        raise ArchitectureError(
            f"{type(loop).__name__} runs its blocks itself and cuts feature maps from them, prompts included;"
            " use a transformers whose backbone takes them from an encoder (DINOv3ViTBackbone: 5.4 or later)"
        )
    in_blocks = {id(p) for p in root.get_submodule(tower.path).parameters()}
    for module in tower.loops[1:]:
        for name, table in module.named_parameters():
            if id(table) not in in_blocks and table.ndim > 2:
                raise ArchitectureError(
                    f"{type(module).__name__} adds {name}, a table for a fixed number of tokens, between its blocks, "
                    "where there is no way to make room for prompts; use a model without it"
                )
    for module in root.get_submodule(tower.path).modules():
        method = next((name for name in OWN_POSITIONS if hasattr(module, name)), None)
        if method is not None:
            raise ArchitectureError(
                f"{type(module).__name__} gives tokens a position by their place in the row ({method}), which prompts "
                "would move and no hook can reach; use a model with absolute positions, or rotary ones of its patches"
            )
