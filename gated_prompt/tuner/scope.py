# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Where a forward begins and ends: around the modules that contain the blocks.

torch runs forward hooks after `Exception`s only, and not at all where `forward` is called directly. So each of these
modules gets a replacement of its `forward`, which begins and ends the `Forward` in try/finally. It is an instance
attribute that shadows the method of the class: it has no tensors and no submodules, so state dicts do not change.
"""

import copy
import inspect
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping, Set
from contextlib import AbstractContextManager, nullcontext
from types import CodeType
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..architecture.batches import PLAIN, Inputs
from ..architecture.read_from import refuse_skipped_states
from ..errors import ArchitectureError, UnsupportedOperationError
from .bank import PromptBank
from .checkpointing import check_begun_in_backward, note, remember_in_checkpoints
from .explain import add_note
from .forward import Forward, begin, current
from .mixed_batch import head_of, mixed_batch
from .request import LOCAL


class Replacement:
    """An object in the place of a module's method. accelerate's replacements of `forward` stay around it."""

    def __init__(self, bank: PromptBank, module: nn.Module, method: str = "forward") -> None:
        self.bank, self.module, self.method = bank, module, method
        self.place = "_old_forward" if method == "forward" and "_old_forward" in vars(module) else method
        self.before: Any = vars(module).get(self.place)
        setattr(module, self.place, self)

    @property
    def original(self) -> Any:
        """What this replaces."""
        return getattr(type(self.module), self.method).__get__(self.module) if self.before is None else self.before

    @property
    def __signature__(self) -> inspect.Signature:
        """transformers chooses the columns of a data set by the signature of `forward`."""
        return inspect.signature(self.original)

    @property
    def __code__(self) -> CodeType:
        """torch.export names its inputs after the file and line of `forward`."""
        return self.original.__code__

    def remove(self) -> None:
        """Restore the method, or, if something replaced this by now and calls it, have it call the original only."""
        place = next((name for name in (self.method, "_old_forward") if vars(self.module).get(name) is self), None)
        if place is not None and self.before is not None:
            setattr(self.module, place, self.before)
        elif place == self.method:
            delattr(self.module, place)
        elif place is not None:
            setattr(self.module, place, self.original)
        self.removed = True

    removed = False


class Scope(Replacement):
    """Around a module that contains the blocks: begins a forward, or continues that of a module around it.

    `level`: how deep the module lies, so that calling it again from inside begins another forward. `body`: the level
    from which on a module takes images only. `innermost`: the level of the module that calls the blocks.
    """

    def __init__(
        self, bank: PromptBank, module: nn.Module, method: str, level: int, body: int, innermost: int
    ) -> None:
        super().__init__(bank, module, method)
        self.level, self.body, self.innermost = level, body, innermost

    def __call__(self, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Any:
        """Call the module. `mixed_batch.py` explains `adapter_names`."""
        original = self.before
        if original is None:
            original = getattr(type(self.module), self.method).__get__(self.module)
        if self.removed:
            return original(*args, **kwargs)
        if adapter_names is not None:
            with mixed_batch(self.bank, adapter_names):
                return self(*args, **kwargs)
        outer = LOCAL.forward
        task = -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()
        if (
            outer is not None
            and outer.bank is self.bank
            and outer.level < self.level
            and outer.task == task
            and ((outer.request is LOCAL.request and outer.switches == LOCAL.switches) or outer.is_current())
            and not outer.in_the_middle
        ):
            forward = outer
        else:
            forward = self._begun(args, kwargs)
        forward.next_block = -1
        if forward.adapters:
            self._prepare(forward, kwargs)
        level = forward.level
        try:
            LOCAL.forward, forward.level = forward, self.level
            images = forward.request.images if forward.request is not None else None
            if images is not None and level < self.body <= self.level:
                images.check_count(self.module, (args, kwargs))
                if len(images.groups) > 1:
                    return images.apart(self, (args, kwargs))
            output = original(*args, **kwargs)
            return self._left(forward, output) if forward.adapters else output
        except (RuntimeError, ValueError, IndexError) as error:
            if forward is not outer and forward.adapters:
                LOCAL.forward = outer
                add_note(error, self.module, self.original, forward, (args, kwargs))
            raise
        finally:
            LOCAL.forward, forward.level = outer, level

    def _begun(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Forward:
        forward = begin(self.bank)
        if forward.task >= 0:
            check_begun_in_backward(forward, args, kwargs)
        first = args[0] if args else kwargs.get("pixel_values")
        if torch.is_grad_enabled() or forward.training or getattr(first, "requires_grad", False):
            note(forward, args, kwargs)
        return forward

    def _prepare(self, forward: Forward, kwargs: dict[str, Any]) -> None:
        asked = kwargs.get("output_attentions")
        if asked is None:
            asked = getattr(getattr(self.module, "config", None), "output_attentions", False)
        if asked and not forward.in_sequence:  # so that attention maps have rows for the prompts
            forward.choose_roles(in_sequence=True)
        if forward.training and self.level >= self.innermost:
            remember_in_checkpoints(self.bank)
        if forward.adapters[0].last < forward.adapters[0].num_layers - 1:
            refuse_skipped_states(self.module, kwargs, forward.adapters[0])

    def _left(self, forward: Forward, output: Any) -> Any:
        adapter = forward.adapters[0]
        if self.level >= self.innermost and forward.in_the_middle:
            raise ArchitectureError(
                f"{type(self.module).__name__} ran {forward.next_block} of its {adapter.num_layers} blocks. Prompts "
                f"are removed after block {adapter.last}, so all blocks must run."
            )
        if forward.training:
            self._check_gradients(forward)
        return without_prompts(output, forward, self.level >= self.innermost)

    def _check_gradients(self, forward: Forward) -> None:
        """Refuse to train prompts in a tower that the model runs with gradients off, as CLIPSeg does."""
        if self.level >= self.innermost:
            forward.with_gradients = forward.with_gradients or torch.is_grad_enabled()
        lost = forward.with_gradients is False and torch.is_grad_enabled()
        if lost and any(parameter.requires_grad for parameter in self.bank.parameters()):
            raise UnsupportedOperationError(
                f"{type(self.module).__name__} runs its vision tower with gradients off (torch.no_grad()), so "
                "prompts, gates and temperatures would never be trained. Use another class, the tower alone, or "
                "freeze the adapter's parameters to train something else."
            )


def refuse_replicas(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Before the root: refuse copies by nn.DataParallel, whose replaced methods are those of the first device."""
    if getattr(module, "_is_replica", False):
        raise UnsupportedOperationError(
            "nn.DataParallel is not supported: its replicas would use the prompts on the first device. "
            "Use DistributedDataParallel (accelerate launch or torchrun), or limit the process to one GPU "
            "(CUDA_VISIBLE_DEVICES=0)."
        )


def forward_context(tuner: Any, *args: Any, adapter_names: Any = None, **kwargs: Any) -> AbstractContextManager[None]:
    """Wrap each forward and `generate` of a `PeftModel`, which takes `adapter_names` out of the arguments itself."""
    return nullcontext() if adapter_names is None else tuner.mixed_batch(adapter_names)


class SwitchHead:
    """After a trained head: if adapters were requested, return for each image the output of its own adapter's head."""

    def __init__(self, bank: PromptBank, path: str) -> None:
        self.bank, self.path = bank, path

    def __call__(self, head: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        forward = current(self.bank)
        request = forward.request
        if request is None or not request.chooses or request.own_heads:
            return None
        if request.images is not None:
            return request.images.through_heads(head, (args, kwargs), self.path)
        return head_of(head, forward.adapters[0] if forward.adapters else None)(*args, **kwargs)


def first_by_position(head: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
    """Before a trained head: pass its first argument by position, as PEFT before 0.20 needs. ZoeDepth names it."""
    name = None if args else next(iter(inspect.signature(head.original_module.forward).parameters), None)
    if name not in kwargs:
        return None
    return (kwargs[name],), {other: value for other, value in kwargs.items() if other != name}


def without_prompts(output: Any, forward: Forward, innermost: bool) -> Any:
    """Remove the prompts from all hidden states in `output`, however nested.

    Hidden states that a compiler or a parallel wrapper recreated, or the model stacked or transposed, are recognized
    by their shape. That is safe in the innermost module only: outer modules may also return those of a text tower.
    """
    adapter = forward.adapters[0]
    prompted = forward.length + adapter.config.num_virtual_tokens
    shape = (prompted, adapter.config.hidden_size) if innermost else ()
    around: list[int] = []  # ids of the objects around a part, which may hold one another

    def walk(part: Any, by_shape: bool) -> Any:
        if isinstance(part, torch.Tensor):
            if part.ndim == 3 and part.shape[:0:-1] == shape != part.shape[1:]:
                return walk(part.mT, True).mT
            known = part.ndim == 3 and part.shape[1] == prompted and (by_shape or forward.holds_prompts(part))
            if not known and not (part.ndim == 4 and part.shape[2:] == shape != part.shape[:1:-1]):
                return part
            return torch.cat((part[..., : adapter.prompts.start, :], part[..., adapter.prompts.stop :, :]), dim=-2)
        if isinstance(part, Iterator):
            return (walk(each, by_shape) for each in part)
        found = parts_of(part)
        if not found or id(part) in around:
            return part
        by_shape = by_shape or (innermost and isinstance(part, (tuple, list)) and _are_states(part))
        changed: dict[Any, Any] = {}
        around.append(id(part))
        for name, each in found.items():
            if not isinstance(each, torch.Tensor) or each.ndim in (3, 4):
                new = walk(each, by_shape or (innermost and name == "hidden_states"))
                changed |= {} if new is each else {name: new}
        around.pop()
        return _rebuilt(part, found, changed) if changed else part

    return walk(output, False)


def parts_of(value: Any) -> dict[Any, Any]:
    """Return the parts of a container or of an object with attributes, such as a dataclass, by key or name."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, (tuple, list, deque, Set)):
        return dict(enumerate(value))
    if isinstance(value, (torch.Tensor, nn.Module, type, *PLAIN)) or callable(value):
        return {}  # plain values first: torch.export cannot trace what follows
    names = list(getattr(value, "__dict__", ()))
    for slots in (vars(kind).get("__slots__", ()) for kind in type(value).__mro__):
        names += [slots] if isinstance(slots, str) else [name for name in slots if not name.startswith("__")]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _rebuilt(value: Any, parts: dict[Any, Any], changed: dict[Any, Any]) -> Any:
    if isinstance(value, MutableMapping):  # ModelOutput
        for name, part in changed.items():
            value[name] = part
        return value
    if isinstance(value, (Mapping, tuple, list, deque, Set)):
        new: Any = type(value)
        parts = parts | changed
        if hasattr(value, "_fields"):  # a NamedTuple
            return new(*parts.values())
        return new(parts if isinstance(value, Mapping) else parts.values())
    other = copy.copy(value)
    for name, part in changed.items():
        object.__setattr__(other, name, part)  # frozen dataclasses too
    return other


def _are_states(part: tuple[Any, ...] | list[Any]) -> bool:
    """Whether these are hidden states (B, N, D) of blocks, with None for those not requested. Attentions are not."""
    asked = [state for state in part if state is not None]
    return bool(asked) and all(isinstance(state, torch.Tensor) and state.ndim == 3 for state in asked)
