# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Make room for the prompts in what a model made for its own N tokens: masks, position biases and rotations.

Prompts have no place in the image: every token sees them, no position bias is added for them (0) and rotary
embeddings leave them as they are. `prompts` is the slice of the token axis where they stand.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from ..errors import ArchitectureError
from .bank import PromptBank
from .forward import running

HIDDEN = -1e4  # additive masks hide with the least number of their precision, -inf, or in old models -10000


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
        forward = running(self.bank)
        if forward is None or kwargs.get("dim_size") is None:
            return None
        height, width = args[0] if args else kwargs["window_size"]
        return args, {**kwargs, "dim_size": forward.plans[0].prompts.start + height * width}


class WidenBias:
    """After a block's own position bias (1, H, N, N) was computed: give the prompts rows and columns of zeros."""

    def __init__(self, bank: PromptBank, index: int) -> None:
        self.bank, self.index = bank, index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        forward = running(self.bank)
        if (
            forward is None
            or not forward.plans[0].first <= self.index <= forward.plans[0].last
            or forward.steps[self.index - forward.plans[0].first].passive
        ):
            return None
        widened: torch.Tensor = widen_mask(output, forward.plans[0].prompts, output.shape[-1])
        return widened


def widen_arguments(
    rest: tuple[Any, ...], named: dict[str, Any], prompts: slice, length: int, first: nn.Module | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a block beside its hidden states, with room for prompts; `first`: the block, if they enter here.

    Raises:
        ArchitectureError: see `refuse_packed`.
    """
    if first is not None:
        refuse_packed(first, (*rest, *named.values()), length)
    widened = tuple(widen_argument(place, value, prompts, length) for place, value in enumerate(rest, start=1))
    return widened, {name: widen_argument(name, value, prompts, length) for name, value in named.items()}


def widen_argument(name: str | int, value: Any, prompts: slice, length: int) -> Any:
    """An argument of a block, made for `length` tokens without prompts, with room for the prompts."""
    if name == "rope" and isinstance(value, torch.Tensor):
        return widen_rotations(value, prompts)
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_table(part, length) for part in value):
        return tuple(
            _insert(part, part.new_full((*part.shape[:-2], 1, part.shape[-1]), one), prompts, -2)
            for part, one in zip(value, (1, 0), strict=True)
        )
    return widen_mask(value, prompts, length)


def _is_table(value: Any, length: int) -> bool:
    """Whether this is half of a pair (cosines, sines) of rotations (..., N, d) of all tokens."""
    return isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[-2] == length


def widen_mask(value: Any, prompts: slice, length: int) -> Any:
    """A mask or bias (..., N) or (..., N, N), queries by keys, made for the N tokens without prompts.

    Every token sees the prompts. Prompts see what at least one token sees: padding is hidden from them as well.
    """
    if isinstance(value, BlockMask):
        return _widen_block_mask(value, prompts, queries=True)
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[-1] != length:
        return value
    if value.ndim > 2 and value.shape[-2] == length:
        seen = value.amax(dim=-2, keepdim=True)
        if value.is_floating_point():  # additive; what is not hidden may be a position bias, of which prompts get none
            seen = torch.where(seen <= HIDDEN, seen, torch.zeros_like(seen))
        value = _insert(value, seen, prompts, dim=-2)
    return widen_keys(value, prompts, length)


def refuse_packed(block: nn.Module, values: Iterable[Any], length: int) -> None:
    """Refuse masks (..., N, N) that keep parts of a row apart: prompts, which every token sees, would join them.

    Raises:
        ArchitectureError: in some row no token is seen by all others, as where several images share it.
    """
    if torch.compiler.is_compiling():  # it depends on data
        return
    for mask in values:
        if isinstance(mask, torch.Tensor) and mask.ndim > 2 and mask.shape[-2:] == (length, length):
            seen = mask > HIDDEN if mask.is_floating_point() else mask != 0
            if bool((seen.any(-1).any(-1) & ~seen.all(-2).any(-1)).any()):
                raise ArchitectureError(
                    f"{type(block).__name__} gets several images packed into one row, masked from each other; "
                    "prompts, which every token sees, would carry one image into another: pass one image per row"
                )


def widen_keys(value: Any, prompts: slice, length: int) -> Any:
    """A mask or bias (..., N) with room for the prompts among the keys alone: every query sees them."""
    if isinstance(value, BlockMask):
        return _widen_block_mask(value, prompts, queries=False)
    if not isinstance(value, torch.Tensor) or value.shape[-1] != length:
        return value
    visible = value.new_full((*value.shape[:-1], 1), 0.0 if value.is_floating_point() else 1)
    return _insert(value, visible, prompts, dim=-1)


def _insert(value: torch.Tensor, one: torch.Tensor, prompts: slice, dim: int) -> torch.Tensor:
    """`value` with a copy of `one`, of length 1 along `dim`, for each prompt."""
    sizes = list(one.shape)
    sizes[dim] = prompts.stop - prompts.start
    before, after = value.split((prompts.start, value.shape[dim] - prompts.start), dim=dim)
    return torch.cat((before, one.expand(sizes), after), dim=dim)


def _widen_block_mask(mask: BlockMask, prompts: slice, queries: bool) -> BlockMask:
    """flex_attention's mask of a function of places: prompts are seen, and see what the first token sees."""
    count, inner = prompts.stop - prompts.start, mask.mask_mod

    def own(place: torch.Tensor) -> torch.Tensor:  # the place of a token without prompts; 0 for a prompt
        behind = torch.where(place < prompts.stop, 0, place - count)
        return torch.where(place < prompts.start, place, behind)

    def widened(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        is_prompt = (k >= prompts.start) & (k < prompts.stop)
        return is_prompt | inner(b, h, own(q) if queries else q, own(k))

    batch, heads, (rows, columns) = mask.shape[0], mask.shape[1], mask.seq_lengths
    rows += count if queries else 0
    return create_block_mask(
        widened, batch, heads, rows, columns + count, mask.kv_num_blocks.device, BLOCK_SIZE=mask.BLOCK_SIZE
    )


def widen_rotations(value: torch.Tensor, prompts: slice) -> torch.Tensor:
    """timm's rotary embeddings (..., N, 2 d) of the patches, sines then cosines, with unrotated prompts before them.

    transformers needs no such help: it rotates the last tokens, as many as there are patches.
    """
    sines, cosines = value.chunk(2, dim=-1)
    shape = (*sines.shape[:-2], prompts.stop - prompts.start, sines.shape[-1])
    sines = torch.cat((sines.new_zeros(shape), sines), dim=-2)
    cosines = torch.cat((cosines.new_ones(shape), cosines), dim=-2)
    return torch.cat((sines, cosines), dim=-1)
