# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Prompts that only serve as keys and values of one attention, beside tokens that do not hold them.

transformers lets every attention look up its function by name, in `AttentionInterface`, and hands it the module with
queries, keys and values. `attend` stands there under a name of its own, adds the prompts' keys and values and calls
the function that the model would have called: sdpa, eager, flash, whatever is set. Attentions that do not ask
`AttentionInterface` have no `AttentionParts`; their blocks always carry the prompts among the tokens.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..errors import UnsupportedOperationError
from .architecture import QueryOutput
from .masks import widen_keys

if TYPE_CHECKING:
    from .bank import PromptBank

NAME = "gated_prompt"
NORM_NAMES = ("layernorm_before", "layer_norm1", "norm1")  # of the norm that stands before the attention
KEY_NAMES, VALUE_NAMES = ("k_proj", "key"), ("v_proj", "value")

Function = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class AttentionParts:
    """What makes keys and values of a block's tokens: `value(norm(tokens))`, and what reads them."""

    attention: nn.Module
    norm: nn.Module
    key: nn.Module
    value: nn.Module
    eager: Function

    @property
    def is_adapted(self) -> bool:
        """Whether another PEFT method changes what keys and values are made of."""
        return any(isinstance(m, BaseTunerLayer) for part in (self.norm, self.key, self.value) for m in part.modules())


def find_attention_parts(block: nn.Module, query: QueryOutput) -> AttentionParts | None:
    """The parts of this block's attention, or None where prompts cannot enter as keys and values alone.

    `query` is the module that makes the block's queries. A norm on the queries comes with one on the keys, which is
    not looked for here: such blocks have no parts.
    """
    attention = next((m for m in block.modules() if query.module in m.children()), None)
    norm = _child(block, NORM_NAMES)
    key, value = (_child(attention, names) for names in (KEY_NAMES, VALUE_NAMES))
    if attention is None or norm is None or key is None or value is None or not hasattr(attention, "config"):
        return None
    forward: Any = inspect.unwrap(type(attention).forward)
    names, eager = forward.__code__.co_names, forward.__globals__.get("eager_attention_forward")
    if "ALL_ATTENTION_FUNCTIONS" not in names or eager is None:
        return None
    return AttentionParts(attention, norm, key, value, eager)


def _child(module: nn.Module | None, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(module.named_children()) if module is not None else {}
    return next((children[name] for name in names if name in children), None)


class AttentionRoute:
    """In the place of an attention's config: the same config, but for the name of the attention function.

    The module's own config is shared by the whole model, so it cannot be changed for some of the blocks, nor while
    an adapter is there. It stays the one that `set_attn_implementation` changes and `attend` asks.
    """

    _attn_implementation = NAME

    def __init__(self, bank: "PromptBank", index: int, parts: AttentionParts) -> None:
        self.bank, self.index, self.parts = bank, index, parts
        self.config: Any = parts.attention.config
        parts.attention.config = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name == "config" or name.startswith("__"):  # not there yet: being copied or unpickled
            raise AttributeError(name)
        return getattr(self.config, name)

    def remove(self) -> None:
        """Give the attention its own config back."""
        self.parts.attention.config = self.config

    @property
    def function(self) -> Function:
        """What the attention would have called without prompts."""
        name = self.config._attn_implementation
        return self.parts.eager if name in (None, "eager") else ALL_ATTENTION_FUNCTIONS[name]

    def keys_and_values(self, prompts: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B or 1, H, P, d) of `prompts` (B or 1, P, D), for heads of `width` d."""
        kept = self.bank.kept if self.index < self.bank.passage.insertion else None
        if kept is not None and self.index in kept.by_block:
            return kept.by_block[self.index]
        normed = self.parts.norm(prompts)
        shape = (*prompts.shape[:2], -1, width)
        key, value = (part(normed).view(shape).transpose(1, 2) for part in (self.parts.key, self.parts.value))
        if kept is not None:
            kept.by_block[self.index] = key, value
        return key, value


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention function of blocks that can take prompts as keys and values (B, H, N, d).

    Raises:
        UnsupportedOperationError: the block runs again without its hooks, so that its prompts are not known.
    """
    route: Any = module.config
    bank: PromptBank = route.bank
    plan = bank.plan
    if plan is not None and bank.is_passive(plan, route.index):
        if bank.keys_only is None:
            raise UnsupportedOperationError(
                "a block is computed a second time without its hooks (activation checkpointing around the blocks?), "
                "so the prompts of its attention are lost; use model.gradient_checkpointing_enable() instead"
            )
        more_keys, more_values = route.keys_and_values(bank.keys_only, key.shape[-1])
        if isinstance(attention_mask, torch.Tensor) and attention_mask.shape[-1] == key.shape[2]:
            attention_mask = widen_keys(attention_mask, plan)
        key, value = (_insert(a, b, plan.prompts.start) for a, b in ((key, more_keys), (value, more_values)))
    return route.function(module, query, key, value, attention_mask, **kwargs)


def _insert(tokens: torch.Tensor, more: torch.Tensor, start: int) -> torch.Tensor:
    """`more` (B or 1, H, P, d) behind the first `start` of `tokens` (B, H, N, d), where prompts stand in a row."""
    more = more.to(tokens.dtype).expand(tokens.shape[0], -1, -1, -1)
    return torch.cat((tokens[:, :, :start], more, tokens[:, :, start:]), dim=2)


AttentionInterface.register(NAME, attend)
