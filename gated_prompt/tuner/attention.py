# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Inside the attention of a block: apply the temperature, and add the prompts as keys and values in passive blocks.

In transformers, attention modules look up their attention function by name in `AttentionInterface` and pass it the
module with queries, keys and values. `attend` is registered there under its own name and calls the function that the
model would have called (sdpa, eager, flash, ...). If a module does not use the interface, the temperature is applied
after its query projection (`ScaleQueries`), and prompts are always part of the token sequence.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from ..architecture import AttentionParts
from ..architecture.adapter import Role
from ..architecture.masks import widen_keys
from ..errors import UnsupportedOperationError
from .bank import PromptBank
from .blocks import entering_prompts, one_per_image
from .forward import Forward, current, running
from .request import LOCAL
from .zero_start import add_prompts

NAME = "gated_prompt"


class AttentionRoute:
    """Replaces an attention module's config: the same config except for the name of the attention function.

    The whole model shares one config object, so it cannot be changed for some blocks only. `set_attn_implementation`
    still changes the original config, and `attend` reads it. `instead`: a function to call rather than the module's.
    """

    _attn_implementation = NAME
    instead: Callable[..., Any] | None = None

    def __init__(self, bank: PromptBank, index: int, parts: AttentionParts) -> None:
        self.bank, self.index, self.parts = bank, index, parts
        self.config: Any = parts.attention.config
        parts.attention.config = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name == "config" or name.startswith("__"):  # not set yet while this object is copied or unpickled
            raise AttributeError(name)
        return getattr(self.config, name)

    def remove(self) -> None:
        """Restore the attention module's own config."""
        self.parts.attention.config = self.config


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention function of blocks that use `AttentionInterface`. Queries, keys and values are (B, H, N, d).

    Raises:
        UnsupportedOperationError: the block is recomputed without its hooks, so its prompts are lost.
    """
    route: Any = module.config
    forward, index = LOCAL.forward, route.index
    function = route.instead or route.parts.function(route.config)
    if forward is None or forward.block != index or forward.bank is not route.bank:  # outside of `PromptBlock`
        forward = current(route.bank)
    if forward.adapters and forward.adapters[0].first <= index <= forward.adapters[0].last:
        forward.attended = index
        query = scale_queries(forward, index, query)
        adapter = forward.adapters[0]
        role = forward.roles[index - adapter.first]
        if role.passive:
            more_keys, more_values = route.parts.keys_and_values(
                _passive_prompts(forward, role, index, query), key.shape[-1]
            )
            if adapter.config.zero_start:
                output, weights = function(module, query, key, value, attention_mask, **kwargs)
                more = (more_keys, more_values)
                eager = function is route.parts.eager
                return add_prompts(forward, index, output, query, more, kwargs.get("scaling"), eager), weights
            key = _insert(key, more_keys, adapter.prompts.start)
            value = _insert(value, more_values, adapter.prompts.start)
            if attention_mask is not None:
                attention_mask = widen_keys(attention_mask, adapter.prompts, query.shape[2])
    return function(module, query, key, value, attention_mask, **kwargs)


def _passive_prompts(forward: Forward, role: Role, index: int, query: torch.Tensor) -> torch.Tensor:
    """Return the prompts (B or 1, P, D) of a passive block."""
    bank, adapter = forward.bank, forward.adapters[0]
    if role.arrive:
        if forward.held is None:
            raise UnsupportedOperationError(
                f"block {index} runs without what the adapter adds around it, since its `forward` was replaced after "
                "the adapter was added or only its inside is recomputed. Add the adapter last, and checkpoint with "
                "model.gradient_checkpointing_enable()."
            )
        prompts = forward.held
    else:
        dropped = forward.training and adapter.config.prompt_dropout > 0
        prompts = entering_prompts(forward, index, query, query.shape[0] if dropped else 1)
    if role.gate is not None and torch.is_grad_enabled():
        gate = bank.gate(adapter, role.gate, forward.training)
        prompts = prompts + 0.0 * gate.to(prompts)  # a zero gradient, since DDP waits for one
    return prompts


def _insert(tokens: torch.Tensor, more: torch.Tensor, start: int) -> torch.Tensor:
    """Insert `more` (B or 1, H, P, d) after the first `start` of `tokens` (B, H, N, d)."""
    more = more.to(tokens.dtype).expand(tokens.shape[0], -1, -1, -1)
    return torch.cat((tokens[:, :, :start], more, tokens[:, :, start:]), dim=2)


AttentionInterface.register(NAME, attend)


class ScaleQueries:
    """After the query projection, in blocks that do not use AttentionInterface: apply the temperature."""

    def __init__(self, bank: PromptBank, index: int, parts: AttentionParts) -> None:
        self.bank, self.index, self.parts = bank, index, parts

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        forward = running(self.bank)
        if forward is None or not forward.adapters[0].first <= self.index <= forward.adapters[0].last:
            return None
        if module is not self.parts.query_output:
            raise UnsupportedOperationError(
                f"the queries of block {self.index} now come from a {type(self.parts.query_output).__name__} that was "
                "added after the prompts, so the temperature would miss its part: inject LoRA first, then prompts"
            )
        forward.attended = self.index
        return scale_queries(forward, self.index, output, self.parts.fused_output)


def scale_queries(forward: Forward, index: int, queries: torch.Tensor, fused: bool = False) -> torch.Tensor:
    """Divide `queries` (B, ...) by the block's temperature, and with them the attention logits.

    If `fused`, the last axis holds queries, keys and values, and only its first third is scaled.
    """
    bank = forward.bank
    scale = bank.inverse_temperature(forward.adapters[0], index)
    if forward.rows is not None:
        scales = forward.by_image(lambda each: _as_tensor(bank.inverse_temperature(each, index), queries))
        scale = one_per_image(scales, queries.ndim)
    if scale is None:
        return queries
    if isinstance(scale, torch.Tensor):
        scale = scale.to(queries)
    if fused:
        first, rest = queries.tensor_split((queries.shape[-1] // 3,), dim=-1)
        return torch.cat((first * scale, rest), dim=-1)
    if isinstance(scale, torch.Tensor) and scale.requires_grad and torch.is_grad_enabled():
        return _ScaleKeepingOutput.apply(queries, scale)
    return queries * scale


def _as_tensor(scale: torch.Tensor | float | None, like: torch.Tensor) -> torch.Tensor:
    return scale if isinstance(scale, torch.Tensor) else like.new_tensor(1.0 if scale is None else scale)


class _ScaleKeepingOutput(torch.autograd.Function):
    """`queries * scale`, saving only its output for the backward pass: attention saves that tensor anyway."""

    generate_vmap_rule = True

    @staticmethod
    def forward(queries: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return queries * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output, scale = ctx.saved_tensors
        return gradient * scale, (gradient * output).sum() / scale
