# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Inside the attention of a block: apply the temperature, and add the prompts as keys and values in passive blocks.

In transformers, attention modules look up their attention function by name in `AttentionInterface` and pass it the
module with queries, keys and values. `attend` is registered there under its own name and calls the function that the
model would have called (sdpa, eager, flash, ...). If a module does not use the interface, the temperature is applied
after its query projection (`ScaleQueries`), and prompts are always part of the token sequence.
"""

import copy
from typing import Any, Protocol

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..architecture import AttentionParts
from ..architecture.adapter import Role
from ..architecture.masks import widen_keys
from ..errors import UnsupportedOperationError
from .bank import PromptBank
from .blocks import by_image, entering_prompts
from .forward import Forward, current, running
from .request import LOCAL
from .zero_start import add_prompts

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
    """Replaces an attention module's config: the same config except for the name of the attention function.

    The whole model shares one config object, so it cannot be changed for some blocks only. `set_attn_implementation`
    still changes the original config, and `attend` reads it.
    """

    _attn_implementation = NAME

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

    @property
    def function(self) -> Function:
        """The attention function that the module would call without prompts."""
        name = self.config._attn_implementation
        found: Any = self.parts.eager if name in (None, "eager") else ALL_ATTENTION_FUNCTIONS[name]
        function: Function = found
        return function

    def keys_and_values(self, prompts: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (B, H, P, d) of `prompts` (B, P, D). `width` is d, the width of a head.

        The modules' hooks are not called: they are to see the tokens of images, once.
        """
        parts, shape = self.parts, (*prompts.shape[:2], -1, width)
        modules = [parts.block.get_submodule(parts.norm or "")]
        modules += map(parts.attention.get_submodule, (parts.key or "", parts.value or ""))
        if modules[0]._modules or modules[1]._modules or modules[2]._modules:
            modules = [_without_hooks(module) for module in modules]
        norm, key, value = modules
        normed = norm.forward(prompts)
        return key.forward(normed).view(shape).transpose(1, 2), value.forward(normed).view(shape).transpose(1, 2)


def _without_hooks(module: nn.Module) -> nn.Module:
    """Return a copy with the same parameters, such as of a LoRA layer around the Linear that has the hooks."""
    children = {name: _without_hooks(child) for name, child in module.named_children()}
    hooked = module._forward_hooks or module._forward_pre_hooks
    if not hooked and all(child is module._modules[name] for name, child in children.items()):
        return module
    other = copy.copy(module)
    other.__dict__.update(_forward_hooks={}, _forward_pre_hooks={}, _modules={**module._modules, **children})
    return other


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention function of blocks that use `AttentionInterface`; queries, keys and values are (B, H, N, d).

    Raises:
        UnsupportedOperationError: the block is recomputed without its hooks, so its prompts are lost.
    """
    route: Any = module.config
    forward, index = LOCAL.forward, route.index
    if forward is None or forward.block != index or forward.bank is not route.bank:  # outside of `PromptBlock`
        forward = current(route.bank)
    if forward.adapters and forward.adapters[0].first <= index <= forward.adapters[0].last:
        forward.attended = index
        query = scale_queries(forward, index, query)
        adapter = forward.adapters[0]
        role = forward.roles[index - adapter.first]
        if role.passive:
            more_keys, more_values = route.keys_and_values(
                _passive_prompts(forward, role, index, query), key.shape[-1]
            )
            if adapter.config.zero_start:
                output, weights = route.function(module, query, key, value, attention_mask, **kwargs)
                more = (more_keys, more_values)
                eager = route.function is route.parts.eager
                return add_prompts(forward, index, output, query, more, kwargs.get("scaling"), eager), weights
            key, value = (
                _insert(key, more_keys, adapter.prompts.start),
                _insert(value, more_values, adapter.prompts.start),
            )
            if attention_mask is not None:
                attention_mask = widen_keys(attention_mask, adapter.prompts, query.shape[2])
    return route.function(module, query, key, value, attention_mask, **kwargs)


def _passive_prompts(forward: Forward, role: Role, index: int, query: torch.Tensor) -> torch.Tensor:
    """Return the prompts (B or 1, P, D) of a passive block."""
    bank, adapter = forward.bank, forward.adapters[0]
    if role.arrive:
        if forward.held is None:
            raise UnsupportedOperationError(
                f"block {index} runs without what the adapter adds around it, since its `forward` was replaced after "
                "the adapter was added or only its inside is recomputed; add the adapter last, and checkpoint with "
                "model.gradient_checkpointing_enable()"
            )
        prompts = forward.held
    else:
        dropped = forward.training and adapter.config.prompt_dropout > 0
        prompts = entering_prompts(forward, index, query, query.shape[0] if dropped else 1)
    if role.gate is not None and torch.is_grad_enabled():
        prompts = prompts + 0.0 * bank.gate(adapter, role.gate, forward.training).to(
            prompts
        )  # a zero gradient, since DDP waits for one
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
    bank, rows = forward.bank, forward.rows
    scale = bank.inverse_temperature(forward.adapters[0], index)
    if rows is not None:
        scales = [bank.inverse_temperature(adapter, index) for adapter in forward.adapters]
        scale = by_image([_as_tensor(s, queries) for s in scales], rows, queries.ndim)
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
