# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Several adapters in one batch: `model(pixel_values, adapter_names=["pets", "flowers", "__base__"])`.

The batch is split by adapter at the model's input, the model runs once for each group of images, and the outputs are
put together in the order of the images. PEFT's LoRA splits inside every layer instead. Prompts cannot do that
simply: two adapters can differ in P, so their tokens do not fit one tensor, and padding would need an attention mask,
which many blocks do not take and which would have to be right for every family. Splitting at the input needs to know
nothing of the model, holds for its heads and for what it does beside the blocks, and costs no more arithmetic: each
image passes each layer once either way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import AdapterNameError, UnsupportedOperationError
from ..files.layout import BANK
from .bank import PromptBank, find_bank
from .names import BASE


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """While open, the next call of `model` computes image i with the adapter `adapter_names[i]`.

    `"__base__"` stands for no adapter. `model` is the base model that carries the prompts.

    Raises:
        AdapterNameError: names that no adapter has.
        UnsupportedOperationError: in training mode, when the number of names is not the batch size, or, from the
            call, when the output holds something that does not belong to single images.
    """
    _check_names(model, adapter_names)
    bank: PromptBank = getattr(model, BANK)
    bank.refuse_folded("run a mixed batch on")
    own = model.__dict__.get("forward")  # accelerate, for one, puts a forward of its own there

    def restore() -> None:
        model.__dict__.pop("forward", None)
        if own is not None:
            model.__dict__["forward"] = own

    def forward(*args: Any, **kwargs: Any) -> Any:
        restore()  # each group calls the model as if nothing had happened, hooks on its root included
        return _run_groups(model, adapter_names, args, kwargs)

    model.__dict__["forward"] = forward
    try:
        with using(model, BASE):  # the hooks around `forward` have no prompts to strip
            yield
    finally:
        restore()


def _check_names(model: nn.Module, adapter_names: Sequence[str]) -> None:
    if model.training:
        raise UnsupportedOperationError("adapter_names is for inference; call model.eval() first")
    if isinstance(adapter_names, str):
        raise UnsupportedOperationError(
            f"adapter_names is {adapter_names!r}; a list with one name for each image is needed"
        )
    bank = find_bank(model)
    known = [*(bank.plans if bank is not None else ()), BASE]
    unknown = [name for name in dict.fromkeys(adapter_names) if name not in known]
    if unknown:
        raise AdapterNameError(f"no adapter is named {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")


def _run_groups(model: nn.Module, adapter_names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in (kwargs.get("pixel_values"), *args, *kwargs.values()) if _is_batched(value)]
    size = len(tensors[0]) if tensors else 0
    if len(adapter_names) != size:
        raise UnsupportedOperationError(
            f"adapter_names holds {len(adapter_names)} names for a batch of {size} images; one for each is needed"
        )
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(adapter_names):
        groups.setdefault(name, []).append(row)
    outputs = []
    for name, rows in groups.items():
        some_args, some_kwargs = _take(rows, size, (args, kwargs))
        with using(model, name):
            outputs.append(model(*some_args, **some_kwargs))
    return _join(outputs, list(groups.values()))


def _take(rows: list[int], size: int, inputs: Any) -> Any:
    return pytree.tree_map(lambda value: value[rows] if _is_batched(value, size) else value, inputs)


@contextmanager
def using(model: nn.Module, name: str) -> Iterator[None]:
    """Switch prompts and heads, and nothing else: `set_adapter` would also change what requires a gradient."""
    switches = [module for module in model.modules() if isinstance(module, (PromptBank, ModulesToSaveWrapper))]
    before = [(module, module._active_adapter, module._disable_adapters) for module in switches]
    try:
        for module in switches:
            module._disable_adapters = name == BASE
            module._active_adapter = [name]
        yield
    finally:
        for module, active, disabled in before:
            module._active_adapter, module._disable_adapters = active, disabled


def _join(outputs: list[Any], groups: list[list[int]]) -> Any:
    """One output from those of the groups, every tensor in it in the order of the images."""
    leaves, specs = zip(*map(pytree.tree_flatten, outputs), strict=True)
    order = torch.tensor([row for rows in groups for row in rows]).argsort()
    return pytree.tree_unflatten([_join_leaf(parts, groups, order) for parts in zip(*leaves, strict=True)], specs[0])


def _join_leaf(parts: tuple[Any, ...], groups: list[list[int]], order: torch.Tensor) -> Any:
    if all(part is None for part in parts):
        return None
    by_image = all(_is_batched(part, len(rows)) for part, rows in zip(parts, groups, strict=True))
    if by_image and len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(parts)[order.to(parts[0].device)]
    found = ", ".join(str(tuple(part.shape)) if isinstance(part, torch.Tensor) else repr(part) for part in parts)
    raise UnsupportedOperationError(
        f"the output holds values that a mixed batch cannot put together (one for each adapter: {found}); for a loss, "
        "leave the labels out and compute it from the logits; attention maps differ where the numbers of prompts do"
    )


def _is_batched(value: Any, size: int | None = None) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and size in (None, len(value))
