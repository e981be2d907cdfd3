# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One forward of a model: which adapter its images go through, and what the hooks have seen of its blocks.

It begins where the model around the blocks is entered and lies in a thread-local, so that any number of threads can
call one model. A block that runs without that model around it - called alone, or computed again in a backward pass -
gets a new one, made from the active adapter.
"""

import threading
import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..errors import ArchitectureError, UnsupportedOperationError
from .bank import PromptBank
from .plan import Plan, Step

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Forward:
    """What the hooks of one forward share.

    `plans`: those of its adapters, alike in everything but their numbers; none: the base. `rows`: for each image which
    of them, (B,); None: the first for all. `in_band`: prompts stand among the tokens in every block. `chosen`: the
    adapters were requested, so that the heads of the active one may be the wrong ones.
    """

    def __init__(self, bank: PromptBank, plans: tuple[Plan, ...], rows: torch.Tensor | None = None) -> None:
        self.bank, self.plans, self.rows = bank, plans, rows
        self.plan = plans[0] if plans else None
        self.in_band = self.chosen = False
        self.outer: Forward | None = None
        self.images: Images | None = None
        self.depth = 0  # of the modules around the blocks that were entered and not left
        self.next_block = 0
        self.length = -1  # tokens without prompts
        self.attended = -1  # the last block whose attention passed through `attention.py`
        self.prompted: dict[int, weakref.ref[torch.Tensor]] = {}  # hidden states that hold prompts

    def step(self, index: int) -> Step:
        """What the prompts do at this block, not before the first that they enter."""
        plan, training = self.plans[0], self.bank.training
        step = (plan.in_band if self.in_band else plan.training if training else plan.evaluation)[index - plan.first]
        # Computed again without the hooks around it, a block would not find the prompts that were set aside for it.
        lost = training and getattr(self.bank.blocks[index], "gradient_checkpointing", False)
        return plan.in_band[index - plan.first] if lost and step.passive and step.arrive else step

    def remember(self, state: torch.Tensor) -> None:
        """Note that these hidden states hold prompts: models hand out the very tensors that the hooks have seen."""
        if self.depth and not torch.compiler.is_compiling():
            self.prompted[id(state)] = weakref.ref(state)

    def holds_prompts(self, state: torch.Tensor) -> bool:
        """Whether these are hidden states that were noted so."""
        noted = self.prompted.get(id(state))
        return noted is not None and noted() is state


class Images(Protocol):
    """The images of a mixed batch; see `mixed_batch.py`."""

    def begin(self, bank: PromptBank, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Forward, Inputs]: ...

    def finish(self, module: nn.Module, output: Any) -> Any: ...

    def through(self, heads: list[nn.Module], rows: torch.Tensor, inputs: Inputs) -> Any: ...


class Request(NamedTuple):
    """What is asked of the forwards of `bank`, other than the active adapter with its own plan."""

    bank: PromptBank
    plans: tuple[Plan, ...] | None = None
    images: Images | None = None
    in_band: bool = False


class _Local(threading.local):
    def __init__(self) -> None:  # runs in each thread
        self.forward: Forward | None = None
        self.request: Request | None = None
        self.aside: torch.Tensor | None = None  # prompts (B, P, D) that the running block took out of its tokens


LOCAL = _Local()


def running(bank: PromptBank) -> Forward | None:
    """The forward of `bank` that runs in this thread, or None where the base alone is computed."""
    forward = LOCAL.forward
    if forward is None or forward.bank is not bank:
        forward = Forward(bank, bank.active_plans)
    return forward if forward.plans else None


@contextmanager
def requested(request: Request) -> Iterator[None]:
    """While open, forwards of this thread are as requested."""
    before, LOCAL.request = LOCAL.request, request
    try:
        yield
    finally:
        LOCAL.request = before


class EnterModel:
    """Before a module that holds the blocks: begin a forward, if this is the outermost of these modules."""

    def __init__(self, bank: PromptBank, innermost: bool) -> None:
        self.bank, self.innermost = bank, innermost

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
        forward, changed = LOCAL.forward, None
        if forward is None or forward.bank is not self.bank:
            outer = forward
            forward, changed = self._begin(module, args, kwargs)
            forward.outer, LOCAL.forward = outer, forward
        forward.depth += 1
        asked = kwargs.get("output_attentions")
        if asked is None:
            asked = getattr(getattr(module, "config", None), "output_attentions", False)
        forward.in_band = forward.in_band or bool(asked)  # attention maps have rows for the prompts
        if self.innermost:
            forward.next_block, forward.length = 0, -1
        return changed

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Forward, Inputs | None]:
        if getattr(module, "_is_replica", False):
            raise UnsupportedOperationError(
                "nn.DataParallel copies a model without its hooks' prompts; use DistributedDataParallel (accelerate "
                "launch or torchrun), or show the process one GPU only (CUDA_VISIBLE_DEVICES=0)"
            )
        request = LOCAL.request
        if request is None or request.bank is not self.bank:
            return Forward(self.bank, self.bank.active_plans), None
        if request.images is not None:
            return request.images.begin(self.bank, args, kwargs)
        forward = Forward(self.bank, self.bank.active_plans if request.plans is None else request.plans)
        forward.in_band, forward.chosen = request.in_band, request.plans is not None
        return forward, None


class LeaveModel:
    """After a module that holds the blocks, also by an exception: take the prompts out of what it reports."""

    def __init__(self, bank: PromptBank, innermost: bool) -> None:
        self.bank, self.innermost = bank, innermost

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        forward = LOCAL.forward
        if forward is None or forward.bank is not self.bank:
            return None
        forward.depth -= 1
        if forward.depth == 0:
            LOCAL.forward, LOCAL.aside = forward.outer, None
        if output is None:  # an exception is on its way
            return None
        if forward.plans:
            if self.innermost and 0 < forward.next_block < forward.plans[0].num_layers:
                raise ArchitectureError(
                    f"{type(module).__name__} ran {forward.next_block} of its {forward.plans[0].num_layers} blocks; "
                    "prompts leave after the last one, so all of them are needed"
                )
            output = _without_prompts(output, forward, self.innermost)
        if forward.depth == 0 and forward.images is not None:
            return forward.images.finish(module, output)
        return output


class SwitchHead:
    """After a trained head: where adapters were chosen, give each image what the head of its own adapter gives."""

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank

    def __call__(self, head: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        forward = LOCAL.forward
        if forward is None or forward.bank is not self.bank or not forward.chosen:
            return None
        trained = head.modules_to_save
        own = [plan.name in trained for plan in forward.plans]  # a ModuleDict has no get()
        heads = [trained[p.name] if o else head.original_module for p, o in zip(forward.plans, own, strict=True)]
        if forward.rows is None or forward.images is None:
            return (heads[0] if heads else head.original_module)(*args, **kwargs)
        return forward.images.through(heads, forward.rows, (args, kwargs))


def _without_prompts(output: Any, forward: Forward, innermost: bool) -> Any:
    """`output` with the prompts taken out of the hidden states in it, wherever they are.

    Hidden states that a compiler or a parallel wrapper made anew are known by their shape. That is safe in the
    innermost module alone: the outer ones may report those of a text tower too.
    """
    plan = forward.plans[0]
    prompted = forward.length + plan.config.num_virtual_tokens

    def strip(state: Any, by_shape: bool) -> Any:
        if not isinstance(state, torch.Tensor) or state.ndim != 3 or state.shape[1] != prompted:
            return state
        if not by_shape and not forward.holds_prompts(state):
            return state
        return torch.cat((state[:, : plan.prompts.start], state[:, plan.prompts.stop :]), dim=1)

    def walk(part: Any, by_shape: bool) -> Any:
        if isinstance(part, MutableMapping):  # ModelOutput
            for name, value in list(part.items()):
                changed = walk(value, innermost and name == "hidden_states")
                if changed is not value:
                    part[name] = changed
            return part
        if type(part) in (tuple, list):
            by_shape = by_shape or (innermost and _are_states(part))
            changed = [walk(value, by_shape) for value in part]
            return part if all(a is b for a, b in zip(changed, part, strict=True)) else type(part)(changed)
        return strip(part, by_shape)

    return walk(output, False)


def _are_states(part: tuple[Any, ...] | list[Any]) -> bool:
    """Whether these are hidden states (B, N, D) of blocks, None where others were asked for; attentions are not."""
    asked = [state for state in part if state is not None]
    return bool(asked) and all(isinstance(state, torch.Tensor) and state.ndim == 3 for state in asked)
