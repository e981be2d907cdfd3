# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Several adapters in one batch: `model(pixel_values, adapter_names=["pets", "flowers", "__base__"])`.

One pass of the model takes all images whose adapters have the same structure (number of prompts, blocks, pooling):
the hooks take prompts, gates and temperatures per image. Images of another structure, and those of the base, pass in
a forward of their own, as their rows of tokens have another length; their outputs are joined in the order of the
images. Each image passes each layer once either way. Heads are chosen per image where they are called.
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
from .bank import PromptBank
from .forward import Forward, Inputs, Request, requested
from .plan import Plan


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """While open, a call of `model` in this thread computes image i with the adapter `adapter_names[i]`.

    `"__base__"` stands for no adapter. `model` is the base model that carries the prompts.

    Raises:
        AdapterNameError: names that no adapter has.
        UnsupportedOperationError: in training mode, when the number of names is not the batch size, or, from the
            call, when the output holds something that does not belong to single images.
    """
    bank: PromptBank = getattr(model, BANK)
    if model.training:
        raise UnsupportedOperationError("adapter_names is for inference; call model.eval() first")
    if isinstance(adapter_names, str):
        raise UnsupportedOperationError(
            f"adapter_names is {adapter_names!r}; a list with one name for each image is needed"
        )
    plans = dict(bank.plans)  # as they are now: others may load or delete adapters meanwhile
    unknown = [name for name in dict.fromkeys(adapter_names) if name not in plans and name != BASE]
    if unknown:
        known = ", ".join([*plans, BASE])
        raise AdapterNameError(f"no adapter is named {', '.join(map(repr, unknown))}; there are: {known}")
    with requested(Request(bank, images=MixedImages([plans.get(name) for name in adapter_names]))):
        yield


class MixedImages:
    """The images of one mixed batch; `plans`: that of each image, None for the base."""

    def __init__(self, plans: list[Plan | None]) -> None:
        self.plans = plans
        groups: dict[Any, list[int]] = {}
        for row, plan in enumerate(plans):
            shape = None
            if plan is not None:
                where = (plan.first, plan.last, plan.prompts.start, plan.prompts.stop)
                shape = (where, plan.config.deep, plan.config.pooling, plan.evaluation)
            groups.setdefault(shape, []).append(row)
        self.groups = list(groups.values())
        self.inputs: Inputs = ((), {})

    def begin(self, bank: PromptBank, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Forward, Inputs]:
        """The forward of the first group, and its inputs."""
        tensors = [value for value in (kwargs.get("pixel_values"), *args, *kwargs.values()) if _is_batched(value)]
        size = len(tensors[0]) if tensors else 0
        if len(self.plans) != size or not size:
            raise UnsupportedOperationError(
                f"adapter_names holds {len(self.plans)} names for a batch of {size} images; one for each is needed"
            )
        self.inputs = (args, kwargs)
        plans = [self.plans[row] for row in self.groups[0]]
        distinct = tuple(dict.fromkeys(plan for plan in plans if plan is not None))
        rows = [distinct.index(plan) for plan in plans if plan is not None]
        forward = Forward(bank, distinct, torch.tensor(rows, device=tensors[0].device) if len(distinct) > 1 else None)
        forward.chosen, forward.images = True, self
        return forward, (self.inputs if len(self.groups) == 1 else self._take(self.groups[0]))

    def finish(self, module: nn.Module, output: Any) -> Any:
        """The output of all images: compute the other groups, and join."""
        if len(self.groups) == 1:
            return output
        outputs = [output]
        for rows in self.groups[1:]:
            args, kwargs = self._take(rows)
            images = MixedImages([self.plans[row] for row in rows])
            with requested(Request(getattr(module, BANK), images=images)):
                outputs.append(module(*args, **kwargs))
        return join(outputs, self.groups)

    def through(self, heads: list[nn.Module], rows: torch.Tensor, inputs: Inputs) -> Any:
        """What the head `rows[i]` gives for image i."""
        groups = [(rows == index).nonzero().flatten().tolist() for index in range(len(heads))]
        parts = [_of_rows(inputs, group, len(rows)) for group in groups]
        return join([head(*args, **kwargs) for head, (args, kwargs) in zip(heads, parts, strict=True)], groups)

    def _take(self, rows: list[int]) -> Inputs:
        return _of_rows(self.inputs, rows, len(self.plans))


def join(outputs: list[Any], groups: list[list[int]]) -> Any:
    """One output from those of the groups, every tensor in it in the order of the images.

    Raises:
        UnsupportedOperationError: they hold something that does not belong to single images.
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
        f"the output holds values that a mixed batch cannot put together (one for each group of adapters: {found}); "
        "for a loss, leave the labels out and compute it from the logits; for attention maps or two towers, mix "
        "adapters with equal numbers of prompts only"
    )


def _of_rows(inputs: Inputs, rows: list[int], size: int) -> Inputs:
    taken: Inputs = pytree.tree_map(lambda value: value[rows] if _is_batched(value, size) else value, inputs)
    return taken


def _is_batched(value: Any, size: int | None = None) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and size in (None, len(value))
