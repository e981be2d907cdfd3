# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Make room for the prompts in what a model made for its own N tokens: masks, position biases and rotations.

Prompts have no place in the image: every token sees them, no position bias is added for them (0) and rotary
embeddings leave them as they are.
"""

from typing import Any

import torch
from torch import nn

from .architecture import VisionTransformer
from .bank import PromptBank
from .plan import Plan

HIDDEN = -1e4  # additive masks hide with the least number of their precision, -inf, or in old models -10000


def attach_bias_hooks(bank: PromptBank, vit: VisionTransformer) -> None:
    """Register the hooks on the model's relative position biases, if it has any."""
    for bias in vit.position_biases:
        bank.handles.append(bias.module.register_forward_pre_hook(KeepBiasSize(bank), with_kwargs=True))
        if bias.block is not None:  # a bias shared by the blocks arrives as a mask in each of them
            bank.handles.append(bias.module.register_forward_hook(WidenBias(bank, bias.block)))


class KeepBiasSize:
    """Before a position bias is computed: ask for it at the model's own length.

    With `interpolate_pos_encoding` the bias is stretched to `dim_size`, the length of the hidden states, prompts
    included. At the model's own length that stretching changes nothing.
    """

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        plan = self.bank.plan
        if plan is None or kwargs.get("dim_size") is None:
            return None
        height, width = args[0] if args else kwargs["window_size"]
        return args, {**kwargs, "dim_size": plan.prompts.start + height * width}


class WidenBias:
    """After a block's own position bias (1, H, N, N) was computed: give the prompts rows and columns of zeros."""

    def __init__(self, bank: PromptBank, index: int) -> None:
        self.bank, self.index = bank, index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        plan = self.bank.plan
        if plan is None or self.index < plan.config.insert_at or self.index in self.bank.passage.passive:
            return None
        return widen_mask(output, plan, output.shape[-1])


def widen_argument(name: str | int, value: Any, plan: Plan, length: int) -> Any:
    """An argument of a block, made for `length` tokens without prompts, with room for the prompts."""
    if name == "rope" and isinstance(value, torch.Tensor):
        return widen_rotations(value, plan)
    return widen_mask(value, plan, length)


def widen_mask(value: Any, plan: Plan, length: int) -> Any:
    """A mask or bias (..., N) or (..., N, N), queries by keys, made for the N tokens without prompts.

    Every token sees the prompts. Prompts see what at least one token sees: padding is hidden from them as well.
    """
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[-1] != length:
        return value
    if value.ndim > 2 and value.shape[-2] == length:
        seen = value.amax(dim=-2, keepdim=True)
        if value.is_floating_point():  # additive; what is not hidden may be a position bias, of which prompts get none
            seen = torch.where(seen <= HIDDEN, seen, torch.zeros_like(seen))
        value = _insert(value, seen, plan, dim=-2)
    return widen_keys(value, plan)


def widen_keys(value: torch.Tensor, plan: Plan) -> torch.Tensor:
    """A mask or bias (..., N) with room for the prompts among the keys alone: every query sees them."""
    visible = value.new_full((*value.shape[:-1], 1), 0.0 if value.is_floating_point() else 1)
    return _insert(value, visible, plan, dim=-1)


def _insert(value: torch.Tensor, one: torch.Tensor, plan: Plan, dim: int) -> torch.Tensor:
    """`value` with a copy of `one`, of length 1 along `dim`, for each prompt."""
    count = plan.config.num_virtual_tokens
    sizes = list(one.shape)
    sizes[dim] = count
    before, after = value.split((plan.prompts.start, value.shape[dim] - plan.prompts.start), dim=dim)
    return torch.cat((before, one.expand(sizes), after), dim=dim)


def widen_rotations(value: torch.Tensor, plan: Plan) -> torch.Tensor:
    """timm's rotary embeddings (..., N, 2 d) of the patches, sines then cosines, with unrotated prompts before them.

    transformers needs no such help: it rotates the last tokens, as many as there are patches.
    """
    sines, cosines = value.chunk(2, dim=-1)
    shape = (*sines.shape[:-2], plan.config.num_virtual_tokens, sines.shape[-1])
    sines = torch.cat((sines.new_zeros(shape), sines), dim=-2)
    cosines = torch.cat((cosines.new_ones(shape), cosines), dim=-2)
    return torch.cat((sines, cosines), dim=-1)
