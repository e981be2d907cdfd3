# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Describe the attention of one block: its projections and norms, and whether it uses AttentionInterface."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

QUERY_NAMES = ("q_proj", "query", "qkv")
KEY_NAMES, VALUE_NAMES = ("k_proj", "key"), ("v_proj", "value")
QUERY_NORM_NAMES, KEY_NORM_NAMES = ("q_norm", "query_norm"), ("k_norm", "key_norm")
OUTPUT_NAMES = ("o_proj", "out_proj", "proj", "projection_layer")
NORM_NAMES = ("layernorm_before", "layer_norm1", "norm1", "layernorm1", "ln_1")  # before the attention of a block
NUM_HEADS_NAMES = ("num_attention_heads", "num_heads")
BIAS_TABLE = "relative_position_bias_table"


@dataclass(frozen=True)
class AttentionParts:
    """How one block computes queries, keys and values, and which function computes its attention.

    Submodules are given by name, since LoRA and quantization replace them.

    `block`, `attention`: the block and its submodule with the projections. `norm`: name in the block of the norm
    before the attention. `query`, `key`, `value`: names of the projections, the last two None if `query` is one Linear
    for all three. `query_norm`, `key_norm`: the norms after them. `eager`: the eager attention function that its class
    names if the attention uses transformers' AttentionInterface, else None. `takes_temperature`: False if a bias is
    added to the queries behind every module that computes them, so that no hook can scale all of them.
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
    takes_temperature: bool = True

    @property
    def uses_interface(self) -> bool:
        """Whether the block calls transformers' AttentionInterface, with queries, keys and values."""
        return self.eager is not None

    @property
    def can_be_passive(self) -> bool:
        """Whether keys and values are exactly `key(norm(tokens))` and `value(norm(tokens))`."""
        known = {self.query, self.key, self.value, *OUTPUT_NAMES}
        others = [
            name for name, child in self.attention.named_children()
            if name not in known and any(True for _ in child.parameters()) and not hasattr(child, BIAS_TABLE)
        ]  # fmt: skip
        own = list(self.attention.parameters(recurse=False))
        return self.uses_interface and None not in (self.norm, self.key, self.value) and not others and not own

    def function(self, config: Any) -> Callable[..., Any]:
        """The attention function that the module would call with this config."""
        name = config._attn_implementation
        found: Any = self.eager if name in (None, "eager") else ALL_ATTENTION_FUNCTIONS[name]
        function: Callable[..., Any] = found
        return function

    def keys_and_values(self, tokens: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (B, H, N, d) of `tokens` (B, N, D) before the norm. `width`: d, that of a head.

        The modules' hooks are not called: they are about the model's own tokens, which pass once.
        """
        modules = [self.block.get_submodule(self.norm or "")]
        modules += map(self.attention.get_submodule, (self.key or "", self.value or ""))
        if modules[0]._modules or modules[1]._modules or modules[2]._modules:
            modules = [_without_hooks(module) for module in modules]
        norm, key, value = modules
        shape, normed = (*tokens.shape[:2], -1, width), norm.forward(tokens)
        return key.forward(normed).view(shape).transpose(1, 2), value.forward(normed).view(shape).transpose(1, 2)

    @property
    def num_heads(self) -> int | None:
        """Number of attention heads, if the module or its config names it."""
        places = (self.attention, getattr(self.attention, "config", None))
        found = (getattr(place, name, None) for place in places for name in NUM_HEADS_NAMES)
        return next((value for value in found if isinstance(value, int)), None)  # a list: of a hierarchical model

    @property
    def query_output(self) -> nn.Module:
        """The module that outputs the queries: after their norm, which would undo an earlier scaling."""
        return self.attention.get_submodule(self.query_norm or self.query)

    @property
    def fused_output(self) -> bool:
        """Whether this output is (..., 3 D), queries first."""
        return self.query_norm is None and self.key is None


def _without_hooks(module: nn.Module) -> nn.Module:
    """Return a copy with the same parameters, such as of a LoRA layer around the Linear that has the hooks."""
    children = {name: _without_hooks(child) for name, child in module.named_children()}
    hooked = module._forward_hooks or module._forward_pre_hooks
    if not hooked and all(child is module._modules[name] for name, child in children.items()):
        return module
    other = copy.copy(module)
    other.__dict__.update(_forward_hooks={}, _forward_pre_hooks={}, _modules={**module._modules, **children})
    return other


def find_attention(block: nn.Module) -> AttentionParts | None:
    """Return the parts of a block's attention. None if it has none, or several."""
    named = dict(block.named_modules())
    hits = [name for name in named if name.rpartition(".")[2] in QUERY_NAMES]
    if len(hits) != 1:
        return None
    parent, _, query = hits[0].rpartition(".")
    attention = named[parent]
    query_norm = _child(attention, QUERY_NORM_NAMES)
    added_later = query == "qkv" and getattr(attention, "q_bias", None) is not None
    if added_later and query_norm is None:  # where nothing is normed, timm calls an Identity behind the bias
        query_norm = next((name for name in QUERY_NORM_NAMES if hasattr(attention, name)), None)
    return AttentionParts(
        block=block,
        attention=attention,
        norm=_child(block, NORM_NAMES),
        query=query,
        key=_child(attention, KEY_NAMES),
        value=_child(attention, VALUE_NAMES),
        query_norm=query_norm,
        key_norm=_child(attention, KEY_NORM_NAMES),
        takes_temperature=not added_later or query_norm is not None,
        eager=_eager_function(attention),
    )


def _child(module: nn.Module, names: tuple[str, ...]) -> str | None:
    children = dict(module.named_children())
    return next((name for name in names if not isinstance(children.get(name), (nn.Identity, type(None)))), None)


def _eager_function(attention: nn.Module) -> Callable[..., Any] | None:
    """Return the eager attention function of a module that uses AttentionInterface, else None."""
    forward: Any = inspect.unwrap(type(attention).forward)
    code = getattr(forward, "__code__", None)
    if not hasattr(attention, "config") or code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
        return None
    names = [name for name in code.co_names if "eager" in name and callable(forward.__globals__.get(name))]
    if len(names) != 1:  # none, or it depends: then the projections are hooked instead
        return None
    eager: Callable[..., Any] = forward.__globals__[names[0]]
    return eager
