# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What prompts do inside the attention of a block: divide its logits, and be its keys and values in passive blocks.

transformers lets every attention look up its function by name, in `AttentionInterface`, and hands it the module with
queries, keys and values. `attend` stands there under a name of its own and calls the function that the model would
have called: sdpa, eager, flash, whatever is set. Where an attention does not ask, the temperature acts behind the
query projection (`ScaleQueries` in `blocks.py`), and prompts always stand among the tokens.
"""

from typing import Any, Protocol

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..architecture import AttentionParts
from ..errors import UnsupportedOperationError
from .bank import PromptBank
from .blocks import entering_prompts, scale_queries
from .forward import LOCAL, Forward, running
from .masks import widen_keys
from .plan import Step

NAME = "gated_prompt"


class Function(Protocol):
    """An attention function of transformers."""

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]: ...


class AttentionRoute:
    """In the place of an attention's config: the same config, but for the name of the attention function.

    The module's own config is shared by the whole model, so it cannot be changed for some of the blocks. It stays
    the one that `set_attn_implementation` changes and `attend` asks.
    """

    _attn_implementation = NAME

    def __init__(self, bank: PromptBank, index: int, parts: AttentionParts) -> None:
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
        found: Any = self.parts.eager if name in (None, "eager") else ALL_ATTENTION_FUNCTIONS[name]
        function: Function = found
        return function

    def keys_and_values(self, prompts: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, H, P, d) of `prompts` (B, P, D), for heads of `width` d."""
        parts, shape = self.parts, (*prompts.shape[:2], -1, width)
        normed = parts.block.get_submodule(parts.norm or "")(prompts)
        key = parts.attention.get_submodule(parts.key or "")(normed)
        value = parts.attention.get_submodule(parts.value or "")(normed)
        return key.view(shape).transpose(1, 2), value.view(shape).transpose(1, 2)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention function of blocks that ask `AttentionInterface`; queries, keys and values are (B, H, N, d).

    Raises:
        UnsupportedOperationError: the block runs again without its hooks, so that its prompts are not known.
    """
    route: Any = module.config
    forward, index = running(route.bank), route.index
    if forward is not None and forward.plans[0].first <= index <= forward.plans[0].last:
        forward.attended = index
        query = scale_queries(forward, index, query)
        plan = forward.plans[0]
        step = forward.steps[index - plan.first]
        if step.passive:
            more_keys, more_values = route.keys_and_values(
                _passive_prompts(forward, step, index, query), key.shape[-1]
            )
            key, value = _insert(key, more_keys, plan.prompts.start), _insert(value, more_values, plan.prompts.start)
            if attention_mask is not None:
                attention_mask = widen_keys(attention_mask, plan.prompts, query.shape[2])
    return route.function(module, query, key, value, attention_mask, **kwargs)


def _passive_prompts(forward: Forward, step: Step, index: int, query: torch.Tensor) -> torch.Tensor:
    """The prompts (B or 1, P, D) of a passive block."""
    bank, plan = forward.bank, forward.plans[0]
    if step.arrive:
        if LOCAL.aside is None:
            raise UnsupportedOperationError(
                "a block is computed a second time without its hooks (activation checkpointing around the blocks?), "
                "so the prompts of its attention are lost; use model.gradient_checkpointing_enable() instead"
            )
        prompts = LOCAL.aside
    else:
        dropped = bank.training and plan.config.prompt_dropout > 0
        prompts = entering_prompts(forward, index, query, query.shape[0] if dropped else 1)
    if step.gate is not None and torch.is_grad_enabled():
        prompts = prompts + 0.0 * bank.gate(plan, step.gate).to(prompts)  # a gradient of zero, as DDP waits for one
    return prompts


def _insert(tokens: torch.Tensor, more: torch.Tensor, start: int) -> torch.Tensor:
    """`more` (B or 1, H, P, d) behind the first `start` of `tokens` (B, H, N, d), where prompts stand in a row."""
    more = more.to(tokens.dtype).expand(tokens.shape[0], -1, -1, -1)
    return torch.cat((tokens[:, :, :start], more, tokens[:, :, start:]), dim=2)


AttentionInterface.register(NAME, attend)
