# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Make room for the prompts in what a model computed for its own N tokens: masks, position biases and rotations.

Prompts have no position in the image: every token attends to them, their position bias is 0, and rotary embeddings do
not rotate them. `prompts` is their slice of the token axis.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from ..errors import ArchitectureError

HIDDEN = -1e4  # additive masks hide with the lowest number of their dtype, -inf, or -10000 in old models


def widen_arguments(
    rest: tuple[Any, ...], named: dict[str, Any], prompts: slice, length: int, first: nn.Module | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make room for prompts in a block's arguments other than hidden states. `first`: the block, if it is the first.

    Raises:
        ArchitectureError: see `refuse_packed`.
    """
    if first is not None:
        refuse_packed(first, (*rest, *named.values()), length)
    widened = tuple(widen_argument(place, value, prompts, length) for place, value in enumerate(rest, start=1))
    return widened, {name: widen_argument(name, value, prompts, length) for name, value in named.items()}


def widen_argument(name: str | int, value: Any, prompts: slice, length: int) -> Any:
    """Make room for the prompts in one argument of a block that was computed for `length` tokens."""
    if name == "rope" and isinstance(value, torch.Tensor):
        return widen_rotations(value, prompts)
    if isinstance(value, torch.Tensor) and value.is_complex():  # rotations of all tokens, as numbers of length 1
        axis = next((axis for axis, size in enumerate(value.shape) if size == length), None)
        one = None if axis is None else value.new_ones([1 if i == axis else n for i, n in enumerate(value.shape)])
        return value if axis is None or one is None else _insert(value, one, prompts, axis)
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_table(part, length) for part in value):
        return tuple(
            _insert(part, part.new_full((*part.shape[:-2], 1, part.shape[-1]), one), prompts, -2)
            for part, one in zip(value, (1, 0), strict=True)
        )
    return widen_mask(value, prompts, length)


def _is_table(value: Any, length: int) -> bool:
    """Whether this can be one of the pair (cosines, sines), each (..., N, d), that rotates all tokens."""
    return isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[-2] == length


def widen_mask(value: Any, prompts: slice, length: int) -> Any:
    """Insert the prompts into a mask or bias (..., N) or (..., N, N), queries by keys, for N = `length` tokens.

    Every token attends to the prompts. Prompts attend to what at least one token attends to, so not to padding.
    """
    if isinstance(value, BlockMask):
        return _widen_block_mask(value, prompts, queries=True)
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[-1] != length:
        return value
    if value.ndim > 2 and value.shape[-2] == length:
        seen = value.amax(dim=-2, keepdim=True)
        if value.is_floating_point():  # additive. Visible entries may hold a position bias, which prompts do not get
            seen = torch.where(seen <= HIDDEN, seen, torch.zeros_like(seen))
        value = _insert(value, seen, prompts, dim=-2)
    return widen_keys(value, prompts, length)


def refuse_packed(block: nn.Module, values: Iterable[Any], length: int) -> None:
    """Refuse masks (..., N, N) that separate parts of a sequence: every token attends to the prompts, which mix them.

    Raises:
        ArchitectureError: all tokens of a sequence attend to no common token, as if several images share it.
    """
    if torch.compiler.is_compiling():  # depends on data
        return
    for mask in values:
        if isinstance(mask, torch.Tensor) and mask.ndim > 2 and mask.shape[-2:] == (length, length):
            seen = mask > HIDDEN if mask.is_floating_point() else mask != 0
            sees = seen.any(-1, keepdim=True)  # padding may see nothing
            if bool((sees.flatten(-2).any(-1) & ~(seen | ~sees).all(-2).any(-1)).any()):
                raise ArchitectureError(
                    f"{type(block).__name__} gets several images packed into one sequence and masked from each other. "
                    "Prompts, to which every token attends, would mix them. Pass one image per sequence."
                )


def widen_keys(value: Any, prompts: slice, length: int) -> Any:
    """Insert the prompts into the keys of a mask or bias (..., N) only: every query attends to them."""
    if isinstance(value, BlockMask):
        return _widen_block_mask(value, prompts, queries=False)
    if not isinstance(value, torch.Tensor) or value.shape[-1] != length:
        return value
    visible = value.new_full((*value.shape[:-1], 1), 0.0 if value.is_floating_point() else 1)
    return _insert(value, visible, prompts, dim=-1)


def _insert(value: torch.Tensor, one: torch.Tensor, prompts: slice, dim: int) -> torch.Tensor:
    """Insert one copy of `one`, of length 1 along `dim`, per prompt."""
    sizes = list(one.shape)
    sizes[dim] = prompts.stop - prompts.start
    before, after = value.split((prompts.start, value.shape[dim] - prompts.start), dim=dim)
    return torch.cat((before, one.expand(sizes), after), dim=dim)


def _widen_block_mask(mask: BlockMask, prompts: slice, queries: bool) -> BlockMask:
    """Insert the prompts into a mask of flex_attention: they attend to what the first token attends to."""
    count, inner = prompts.stop - prompts.start, mask.mask_mod

    def own(place: torch.Tensor) -> torch.Tensor:  # index of a token without prompts; 0 for a prompt
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
    """Insert unrotated prompts before the patches in timm's rotary embeddings (..., N, 2 d), sines then cosines.

    transformers rotates the last N tokens, one per patch, so it needs no change.
    """
    sines, cosines = value.chunk(2, dim=-1)
    shape = (*sines.shape[:-2], prompts.stop - prompts.start, sines.shape[-1])
    sines = torch.cat((sines.new_zeros(shape), sines), dim=-2)
    cosines = torch.cat((cosines.new_ones(shape), cosines), dim=-2)
    return torch.cat((sines, cosines), dim=-1)
