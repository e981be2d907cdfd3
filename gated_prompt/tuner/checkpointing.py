# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Activation checkpointing: blocks are recomputed in the backward pass with the adapter that their forward used.

By then another adapter may be active. transformers' blocks call a checkpoint function, which `Remembering` replaces.
Whoever else recomputes modules calls them with the same inputs, so a forward is noted at the storage of its inputs.
"""

import copy
import weakref
from collections.abc import Mapping
from typing import Any, cast

import torch

from ..architecture.adapter import Adapter
from ..errors import UnsupportedOperationError
from .forward import Forward, PromptTensors, current, request_for
from .request import LOCAL

NOTES = "_gated_prompt_forwards"  # attribute of a storage: forwards by the id of their bank


def note(forward: Forward, *values: Any) -> None:
    """Note at the storage of the first tensor in `values` what this forward uses."""
    notes = _notes(values)
    if notes is None:
        return
    if forward.trains is None:
        forward.trains = _train(forward.bank, forward.adapters)
    noted = notes.setdefault(id(forward.bank), [])
    if not any(other.uses == forward.uses and other.rows is forward.rows for other in noted):
        kept = copy.copy(forward)
        kept.bank = cast(PromptTensors, weakref.proxy(forward.bank))  # a kept batch does not keep the model in memory
        noted.append(kept)


def _notes(value: Any) -> dict[int, list[Forward]] | None:
    """Return the notes at the first tensor in nested arguments. None if it has no storage."""
    if isinstance(value, torch.Tensor) and not torch.compiler.is_compiling():
        try:
            found: dict[int, list[Forward]] = vars(value.untyped_storage()).setdefault(NOTES, {})
        except (NotImplementedError, RuntimeError):  # torch.func
            return None
        return found
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((notes for part in parts if (notes := _notes(part)) is not None), None)


def _train(bank: PromptTensors, adapters: tuple[Adapter, ...]) -> bool:
    kinds = [getattr(bank, kind) for kind in bank.kinds]
    names = [adapter.name for adapter in adapters]
    return any(name in tensors and tensors[name].requires_grad for tensors in kinds for name in names)


def again(bank: PromptTensors, forward: Forward) -> Forward:
    """Return a forward that computes the same once more.

    Raises:
        UnsupportedOperationError: an adapter was deleted, replaced or frozen meanwhile.
    """
    for adapter in forward.adapters:
        now = bank.adapters.get(adapter.name)
        if now is None or now.gate_rows is not adapter.gate_rows:
            raise UnsupportedOperationError(
                f"activation checkpointing recomputes a forward of adapter {adapter.name!r}, which was deleted or "
                "replaced meanwhile. Call backward() before that."
            )
    if forward.trains and not _train(bank, forward.adapters):
        raise UnsupportedOperationError(
            f"activation checkpointing recomputes a forward of adapter {forward.adapters[0].name!r}, whose parameters "
            "no longer want gradients, since another adapter was activated. Call backward() before set_adapter, or "
            "requires_grad_(True) on them."
        )
    new = Forward(bank, forward.adapters, request_for(bank))
    new.rows, new.roles, new.training, new.again = forward.rows, forward.roles, forward.training, True
    return new


def recomputed(bank: PromptTensors, hidden: Any) -> Forward:
    """Return the forward of a block that is called in a backward pass, outside of a forward.

    Raises:
        UnsupportedOperationError: it is not known, or several forwards began with the same hidden states.
    """
    found = (_notes(hidden) or {}).get(id(bank), [])
    if len(found) == 1:
        return again(bank, found[0])
    raise UnsupportedOperationError(
        f"a block is recomputed in a backward pass, but {len(found)} forwards with different adapters used its input, "
        "so it is not known which is meant. Checkpoint the blocks with model.gradient_checkpointing_enable(), and "
        "give each forward its own input."
    )


def check_begun_in_backward(forward: Forward, *inputs: Any) -> None:
    """Check a forward that begins in a backward pass: if it is a recomputation, it must use what was used before.

    Raises:
        UnsupportedOperationError: adapters were switched since.
    """
    for other in (_notes(inputs) or {}).get(id(forward.bank), []):
        if other.uses != forward.uses:
            raise UnsupportedOperationError(
                "a forward is recomputed in a backward pass (activation checkpointing around the model?), but "
                "adapters were switched since. Call backward() before, or use model.gradient_checkpointing_enable()."
            )
        again(forward.bank, other)


def remember_in_checkpoints(bank: PromptTensors) -> None:
    """Let the checkpoint functions of all blocks remember the forward in which they are called."""
    for block in bank.blocks:
        function: Any = vars(block).get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, Remembering):
            vars(block)["_gradient_checkpointing_func"] = Remembering(bank, function)


class Remembering:
    """A checkpoint function of transformers that recomputes with the adapter of the forward."""

    def __init__(self, bank: PromptTensors, function: Any) -> None:
        self.bank, self.function = bank, function

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Checkpoint `function(*args)`."""
        if not torch.compiler.is_compiling():
            forward = current(self.bank)
            forward.trains = _train(self.bank, forward.adapters)
            function = _Again(forward, function)
        return self.function(function, *args, **kwargs)


class _Again:
    """A function that runs as in its forward when it is called in a backward pass."""

    def __init__(self, forward: Forward, function: Any) -> None:
        self.forward, self.function = forward, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() == self.forward.task:
            return self.function(*args, **kwargs)
        outer = LOCAL.forward
        try:
            LOCAL.forward = again(self.forward.bank, self.forward)
            return self.function(*args, **kwargs)
        finally:
            LOCAL.forward = outer
