# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Split the arguments of a module by image, and join what it returns for each part of a batch."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..errors import UnsupportedOperationError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

# Arguments that hold something for each image, beside the first, which holds the images.
OF_IMAGES = frozenset(
    [
        "pixel_values",
        "hidden_states",
        "inputs_embeds",
        "bool_masked_pos",
        "pixel_attention_mask",
        "pixel_mask",
        "attention_mask",
        "attn_mask",
        "patch_attention_mask",
        "spatial_shapes",
        "ids_restore",
        "noise",
    ]
)
OF_THE_CALL = ("output_", "return_", "blocks")  # beginnings of the names of arguments that hold for all images
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


def of_images(run: Callable[..., Any], inputs: Inputs, rows: list[int], size: int) -> Inputs:
    """Return the part of a module's arguments that belongs to these of its `size` images.

    What is per image is known by name: an equal first dimension proves nothing.

    Raises:
        UnsupportedOperationError: an argument holds values of which it is not known whether they belong to images.
    """
    args, kwargs = inputs
    names = list(inspect.signature(run).parameters)
    named = [*zip([*names, *[""] * len(args)], args, strict=False), *kwargs.items()]
    first = next((name for name, value in named if isinstance(value, (torch.Tensor, tuple, list))), "")

    def part(name: str, value: Any) -> Any:
        if isinstance(value, PLAIN) or (isinstance(value, torch.Tensor) and value.ndim == 0):
            return value
        if name.startswith(OF_THE_CALL):
            return value
        known = name in OF_IMAGES or name == first
        if known and all(
            isinstance(leaf, torch.Tensor) and len(leaf) in (1, size) for leaf in pytree.tree_leaves(value)
        ):
            return pytree.tree_map(lambda leaf: leaf[rows] if len(leaf) == size else leaf, value)
        raise UnsupportedOperationError(
            "adapter_names mixes adapters of different structure (prompts, blocks, pooling or heads), so their images "
            f"are computed apart, but it is not known which part of the argument {name!r} belongs to which image. "
            "Leave it out, or call the model with one adapter at a time. For a loss, leave the labels out and "
            "compute it from the logits."
        )

    taken = [part(name, value) for name, value in named]
    return tuple(taken[: len(args)]), dict(zip(kwargs, taken[len(args) :], strict=True))


def join(outputs: list[Any], groups: list[list[int]]) -> Any:
    """Join the outputs of the groups, with every tensor in the order of the images.

    Raises:
        UnsupportedOperationError: they hold values that do not belong to single images.
    """
    leaves, specs = zip(*map(pytree.tree_flatten, outputs), strict=True)
    order = torch.tensor([row for rows in groups for row in rows]).argsort()
    return pytree.tree_unflatten([_join_leaf(parts, groups, order) for parts in zip(*leaves, strict=True)], specs[0])


def _join_leaf(parts: tuple[Any, ...], groups: list[list[int]], order: torch.Tensor) -> Any:
    if all(part is None for part in parts):
        return None
    tensors = all(isinstance(part, torch.Tensor) and part.ndim for part in parts)
    if tensors and [len(part) for part in parts] == list(map(len, groups)) and len({p.shape[1:] for p in parts}) == 1:
        return torch.cat(parts)[order.to(parts[0].device)]
    found = ", ".join(str(tuple(part.shape)) if isinstance(part, torch.Tensor) else repr(part) for part in parts)
    raise UnsupportedOperationError(
        f"the output has values that cannot be joined for a mixed batch (one per group of adapters: {found}). For a "
        "loss, leave the labels out and compute it from the logits. For attention maps or two towers, mix only "
        "adapters with equal numbers of prompts."
    )
