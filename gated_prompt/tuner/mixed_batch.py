# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Several adapters in one batch: `model(pixel_values, adapter_names=["pets", "flowers", "__base__"])`.

One forward computes all images whose adapters have the same structure (number of prompts, blocks, pooling). The hooks
select prompts, gates and temperatures per image. Each other structure, and the base, passes through the vision tower
on its own, since the sequences have another length. Its outputs are joined in the order of the images. What surrounds
the tower runs once, on all images: texts are never split. Heads are selected per image when they are called.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..architecture.adapter import Adapter
from ..architecture.batches import Inputs, join, of_images
from ..architecture.names import BASE
from ..errors import AdapterNameError, UnsupportedOperationError
from .forward import PromptTensors
from .request import Request, requested

OF_TEXTS = re.compile(r"(^|[._])(text|txt|language|lm)([._]|$)")  # in paths of heads beside the vision tower


@contextmanager
def mixed_batch(bank: PromptTensors, adapter_names: Sequence[str]) -> Iterator[None]:
    """Inside the `with` block, calls of the model in this thread compute image i with the adapter `adapter_names[i]`.

    `"__base__"` means no adapter.

    Raises:
        AdapterNameError: there is no adapter of a given name.
        UnsupportedOperationError: the model is in training mode, or, raised by the call, the number of names differs
            from the batch size, or inputs or outputs hold values that do not belong to single images.
    """
    if bank.training:
        raise UnsupportedOperationError("adapter_names is for inference. Call model.eval() first.")
    if isinstance(adapter_names, str):
        raise UnsupportedOperationError(
            f"adapter_names is {adapter_names!r}. Expected a list with one name per image."
        )
    adapters = dict(bank.adapters)  # a snapshot: other threads may load or delete adapters meanwhile
    unknown = [name for name in dict.fromkeys(adapter_names) if name not in adapters and name != BASE]
    if unknown:
        known = ", ".join([*adapters, BASE])
        raise AdapterNameError(f"no adapter is named {', '.join(map(repr, unknown))}. Choose from: {known}.")
    with requested(Request(bank, images=MixedImages(bank, [adapters.get(name) for name in adapter_names]))):
        yield


class MixedImages:
    """The images of one mixed batch.

    `adapters`: the adapter of each image, None for the base. `groups`: the images of each structure. `together`: the
    adapters of a single group, and `rows` the index of each image's among them, (B,), None if it is the same for all.
    """

    stacked = False  # see `Forward`

    def __init__(self, bank: PromptTensors, adapters: list[Adapter | None]) -> None:
        self.bank, self.adapters = bank, adapters
        self.groups = _groups([_structure(adapter) for adapter in adapters])
        self.together: tuple[Adapter, ...] = ()
        self.rows: torch.Tensor | None = None
        if len(self.groups) == 1 and adapters[0] is not None:
            self.together = tuple(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
            if len(self.together) > 1:
                self.rows = torch.tensor([self.together.index(adapter) for adapter in adapters if adapter is not None])

    def check_count(self, module: nn.Module, inputs: Inputs) -> None:
        """Check that a module that takes images gets one for each adapter.

        Raises:
            UnsupportedOperationError: it gets another number.
        """
        tensors = [value for value in (*inputs[0], *inputs[1].values()) if isinstance(value, torch.Tensor)]
        size = next((len(tensor) for tensor in tensors if tensor.ndim), 0)
        if len(self.adapters) != size or not size:
            raise UnsupportedOperationError(
                f"adapter_names holds {len(self.adapters)} names for a batch of {size} images in "
                f"{type(module).__name__}. Give one name per image."
            )

    def apart(self, run: Callable[..., Any], inputs: Inputs) -> Any:
        """Call `run`, which takes images, once for each group, and return the joined output."""
        outputs = []
        for rows in self.groups:
            args, kwargs = of_images(run, inputs, rows, len(self.adapters))
            images = MixedImages(self.bank, [self.adapters[row] for row in rows])
            with requested(Request(self.bank, images=images)):
                outputs.append(run(*args, **kwargs))
        return join(outputs, self.groups)

    def through_heads(self, head: ModulesToSaveWrapper, inputs: Inputs, path: str) -> Any:
        """Return for each image the output of the head of its own adapter.

        Raises:
            UnsupportedOperationError: the heads take texts, which belong to no image, or another number of images.
        """
        heads = [head_of(head, adapter) for adapter in self.adapters]
        groups = _groups([id(own) for own in heads])
        if not OF_TEXTS.search(path):
            self.check_count(head, inputs)
        elif len(groups) > 1:
            raise UnsupportedOperationError(
                f"the adapters in adapter_names have trained copies of {path}, which takes texts, and it is not known "
                "which text belongs to which image. Call the model with one adapter at a time."
            )
        if len(groups) == 1:
            return heads[0](*inputs[0], **inputs[1])
        outputs = []
        for rows in groups:
            args, kwargs = of_images(head.original_module.forward, inputs, rows, len(heads))
            outputs.append(heads[rows[0]](*args, **kwargs))
        return join(outputs, groups)


def head_of(head: ModulesToSaveWrapper, adapter: Adapter | None) -> nn.Module:
    """Return the head of an adapter, or that of the base."""
    trained = head.modules_to_save  # ModuleDict has no get()
    own: nn.Module = trained[adapter.name] if adapter and adapter.name in trained else head.original_module
    return own


def _structure(adapter: Adapter | None) -> object:
    if adapter is None:
        return None
    config, where = adapter.config, (adapter.first, adapter.last, adapter.prompts.start, adapter.prompts.stop)
    return where, config.deep, config.zero_start, config.pooling, adapter.evaluation


def _groups(keys: Sequence[object]) -> list[list[int]]:
    """Return the positions of each distinct key."""
    groups: dict[object, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return list(groups.values())
