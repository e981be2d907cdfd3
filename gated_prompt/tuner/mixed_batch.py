# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Several adapters in one batch: `model(pixel_values, adapter_names=["pets", "flowers", "__base__"])`.

One forward computes all images whose adapters have the same structure (number of prompts, blocks, pooling); the hooks
select prompts, gates and temperatures per image. Each other structure, and the base, needs its own forward, since the
sequences have another length; the outputs are joined in the order of the images. Either way, each image passes through
each layer once. Heads are selected per image when they are called.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..architecture.names import BASE
from ..errors import AdapterNameError, UnsupportedOperationError
from ..files.layout import BANK
from .adapter import Adapter
from .bank import PromptBank
from .forward import Forward, Inputs, Request, requested


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """Inside the `with` block, calls of `model` in this thread compute image i with the adapter `adapter_names[i]`.

    `"__base__"` means no adapter. `model` is the base model with the prompts.

    Raises:
        AdapterNameError: there is no adapter of a given name.
        UnsupportedOperationError: the model is in training mode, or, raised by the call, the number of names differs
            from the batch size or the output holds values that do not belong to single images.
    """
    bank: PromptBank = getattr(model, BANK)
    if model.training:
        raise UnsupportedOperationError("adapter_names is for inference; call model.eval() first")
    if isinstance(adapter_names, str):
        raise UnsupportedOperationError(f"adapter_names is {adapter_names!r}; expected a list with one name per image")
    adapters = dict(bank.adapters)  # a snapshot: other threads may load or delete adapters meanwhile
    unknown = [name for name in dict.fromkeys(adapter_names) if name not in adapters and name != BASE]
    if unknown:
        known = ", ".join([*adapters, BASE])
        raise AdapterNameError(f"no adapter is named {', '.join(map(repr, unknown))}; there are: {known}")
    with requested(Request(bank, images=MixedImages([adapters.get(name) for name in adapter_names]))):
        yield


class MixedImages:
    """The images of one mixed batch; `adapters`: the adapter of each image, None for the base."""

    def __init__(self, adapters: list[Adapter | None]) -> None:
        self.adapters = adapters
        groups: dict[Any, list[int]] = {}
        for row, adapter in enumerate(adapters):
            shape = None
            if adapter is not None:
                where = (adapter.first, adapter.last, adapter.prompts.start, adapter.prompts.stop)
                config = adapter.config
                shape = (where, config.deep, config.zero_start, config.pooling, adapter.evaluation)
            groups.setdefault(shape, []).append(row)
        self.groups = list(groups.values())
        self.inputs: Inputs = ((), {})

    def begin(self, bank: PromptBank, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Forward, Inputs]:
        """Return the forward of the first group, and its inputs."""
        tensors = [value for value in (kwargs.get("pixel_values"), *args, *kwargs.values()) if _is_batched(value)]
        size = len(tensors[0]) if tensors else 0
        if len(self.adapters) != size or not size:
            raise UnsupportedOperationError(
                f"adapter_names holds {len(self.adapters)} names for a batch of {size} images; expected one per image"
            )
        self.inputs = (args, kwargs)
        adapters = [self.adapters[row] for row in self.groups[0]]
        distinct = tuple(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        rows = [distinct.index(adapter) for adapter in adapters if adapter is not None]
        forward = Forward(bank, distinct, torch.tensor(rows, device=tensors[0].device) if len(distinct) > 1 else None)
        forward.chosen, forward.images = True, self
        return forward, (self.inputs if len(self.groups) == 1 else self._take(self.groups[0]))

    def finish(self, module: nn.Module, output: Any) -> Any:
        """Compute the other groups, and return the joined output of all images."""
        if len(self.groups) == 1:
            return output
        outputs = [output]
        for rows in self.groups[1:]:
            args, kwargs = self._take(rows)
            images = MixedImages([self.adapters[row] for row in rows])
            with requested(Request(getattr(module, BANK), images=images)):
                outputs.append(module(*args, **kwargs))
        return join(outputs, self.groups)

    def through(self, heads: list[nn.Module], rows: torch.Tensor, inputs: Inputs) -> Any:
        """Return the output of `heads[rows[i]]` for each image i."""
        groups = [(rows == index).nonzero().flatten().tolist() for index in range(len(heads))]
        parts = [_of_rows(inputs, group, len(rows)) for group in groups]
        return join([head(*args, **kwargs) for head, (args, kwargs) in zip(heads, parts, strict=True)], groups)

    def _take(self, rows: list[int]) -> Inputs:
        return _of_rows(self.inputs, rows, len(self.adapters))


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
    by_image = all(_is_batched(part, len(rows)) for part, rows in zip(parts, groups, strict=True))
    if by_image and len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(parts)[order.to(parts[0].device)]
    found = ", ".join(str(tuple(part.shape)) if isinstance(part, torch.Tensor) else repr(part) for part in parts)
    raise UnsupportedOperationError(
        f"the output has values that cannot be joined for a mixed batch (one per group of adapters: {found}); for a "
        "loss, leave the labels out and compute it from the logits; for attention maps or two towers, mix only "
        "adapters with equal numbers of prompts"
    )


def _of_rows(inputs: Inputs, rows: list[int], size: int) -> Inputs:
    taken: Inputs = pytree.tree_map(lambda value: value[rows] if _is_batched(value, size) else value, inputs)
    return taken


def _is_batched(value: Any, size: int | None = None) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and size in (None, len(value))
