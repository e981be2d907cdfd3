# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One forward of a model: which adapter its images go through, and what the hooks have seen of its blocks.

It begins where the model around the blocks is entered and lies in a thread-local, so that any number of threads can
call one model. A block that runs without that model around it - called alone, or computed again in a backward pass -
gets a new one, made from the active adapter.
"""

import inspect
import threading
import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..errors import ArchitectureError, GatedPromptError, UnsupportedOperationError
from ..files.layout import BANK
from .bank import PromptBank
from .plan import Plan, Step

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Forward:
    """What the hooks of one forward share.

    `plans`: those of its adapters, alike in everything but their numbers; none: the base. `rows`: for each image which
    of them, (B,); None: the first for all. `in_band`: prompts stand among the tokens in every block. `chosen`: the
    adapters were requested, so that the heads of the active one may be the wrong ones. `steps`: what the prompts do
    at each block from the first that they enter.
    """

    def __init__(
        self, bank: PromptBank, plans: tuple[Plan, ...], rows: torch.Tensor | None = None, in_band: bool = False
    ) -> None:
        self.bank, self.plans, self.rows = bank, plans, rows
        self.chosen = False
        self.steps: tuple[Step, ...] = ()
        self.choose_steps(in_band)
        self.outer: Forward | None = None
        self.images: Images | None = None
        self.depth = 0  # of the modules around the blocks that were entered and not left
        self.next_block = 0
        self.length = -1  # tokens without prompts
        self.attended = -1  # the last block whose temperature was applied
        self.skipped = -1  # the last block that `skip.py` did not run
        self.prompted: dict[int, weakref.ref[torch.Tensor]] = {}  # hidden states that hold prompts

    def choose_steps(self, in_band: bool) -> None:
        """Decide where prompts stand among the tokens."""
        self.in_band = in_band
        if not self.plans:
            return
        plan, training = self.plans[0], self.bank.training
        self.steps = plan.in_band if in_band else plan.training if training else plan.evaluation
        last, checkpointed = self.steps[-1], getattr(self.bank.blocks[-1], "gradient_checkpointing", False)
        if training and checkpointed and last.passive and last.arrive:
            # Computed again without the hooks around it, the block would not find the prompts set aside for it.
            self.steps = (*self.steps[:-1], plan.in_band[-1])

    def remember(self, *states: torch.Tensor) -> None:
        """Note that these hidden states hold prompts: models hand out the very tensors that the hooks have seen."""
        if self.depth and not torch.compiler.is_compiling():
            for state in states:
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
    """What is asked of the forwards of `bank`, other than the active adapter with its own plan.

    `plans`: of one adapter, or none for the base; `images`: those of a mixed batch; `in_band`: see `Forward`;
    `own_heads`: heads are those of the active adapter all the same.
    """

    bank: PromptBank
    plans: tuple[Plan, ...] | None = None
    images: Images | None = None
    in_band: bool = False
    own_heads: bool = False


class _Local(threading.local):
    def __init__(self) -> None:  # runs in each thread
        self.forward: Forward | None = None
        self.request: Request | None = None
        self.aside: torch.Tensor | None = None  # prompts (B, P, D) that the running block took out of its tokens
        self.beside: int | None = None  # values that the last block returned behind its tokens; None: no tuple


LOCAL = _Local()


def running(bank: PromptBank) -> Forward | None:
    """The forward of `bank` that runs in this thread, or None where the base alone is computed."""
    forward = LOCAL.forward
    if forward is None or forward.bank is not bank:
        forward = _asked(bank)
    return forward if forward.plans else None


def _asked(bank: PromptBank) -> Forward:
    request = LOCAL.request
    if request is None or request.bank is not bank:
        return Forward(bank, bank.active_plans)
    plans = bank.active_plans if request.plans is None else request.plans
    forward = Forward(bank, plans, in_band=request.in_band)
    forward.chosen = request.plans is not None and not request.own_heads
    return forward


@contextmanager
def requested(request: Request) -> Iterator[None]:
    """While open, forwards of this thread are as requested."""
    before, LOCAL.request = LOCAL.request, request
    try:
        yield
    finally:
        LOCAL.request = before


@contextmanager
def forward_context(tuner: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
    """Around each forward of a `PeftModel`, which keeps `adapter_names` out of the model's own arguments.

    Raises:
        AdapterNameError, UnsupportedOperationError: of `adapter_names`, see `mixed_batch.py`.
        ArchitectureError: the forward fails, and without prompts it does not: the model has something, such as a
            table of positions, for its own number of tokens only.
    """
    names = kwargs.pop("adapter_names", None)
    with nullcontext() if names is None else tuner.mixed_batch(names):
        try:
            yield
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, (GatedPromptError, torch.OutOfMemoryError)) or not _runs_without(tuner, args, kwargs):
                raise
            raise ArchitectureError(
                f"{type(tuner.model).__name__} cannot take prompts among its tokens, without them it runs: {error}"
            ) from error


def _runs_without(tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the base computes these inputs."""
    try:
        with torch.no_grad(), requested(Request(getattr(tuner.model, BANK), plans=())):
            tuner.model(*args, **kwargs)
    except Exception:
        return False
    return True


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
        if asked and not forward.in_band:  # attention maps have rows for the prompts
            forward.choose_steps(in_band=True)
        if forward.plans and forward.plans[0].last < forward.plans[0].num_layers - 1:
            _refuse_skipped_states(module, kwargs, forward.plans[0])
        if self.innermost:
            forward.next_block, forward.length = 0, -1
        return changed

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Forward, Inputs | None]:
        if getattr(module, "_is_replica", False):
            raise UnsupportedOperationError(
                "nn.DataParallel is not supported: hooks of its replicas would use the prompts on the first device; "
                "use DistributedDataParallel (accelerate launch or torchrun), or show the process one GPU "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        request = LOCAL.request
        if request is not None and request.bank is self.bank and request.images is not None:
            return request.images.begin(self.bank, args, kwargs)
        return _asked(self.bank), None


def _refuse_skipped_states(module: nn.Module, kwargs: dict[str, Any], plan: Plan) -> None:
    """Refuse to report states of blocks that do not run: whoever asked would get one state again and again.

    What is asked for is all hidden states or none, or some of the L + 1 by index (transformers 5.2x). The last alone
    is what the head reads.
    """
    asked = kwargs.get("output_hidden_states")
    if asked is None:
        asked = getattr(getattr(module, "config", None), "output_hidden_states", False)
    count = plan.num_layers + 1
    indices = range(count if asked else 0) if isinstance(asked, bool) else [asked] if isinstance(asked, int) else asked
    chosen = {index % count for index in indices}
    if chosen != {count - 1} and max(chosen, default=0) > plan.last + 1:
        raise UnsupportedOperationError(
            f"{type(module).__name__} is asked for hidden states above block {plan.last}, which read_from={plan.last} "
            f"of adapter {plan.name!r} leaves out; read blocks 0 to {plan.last} with forward hooks, or use "
            "read_from=None"
        )


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
            last = forward.plans[0].last
            if self.innermost and 0 < forward.next_block <= last:
                raise ArchitectureError(
                    f"{type(module).__name__} ran {forward.next_block} of its {forward.plans[0].num_layers} blocks; "
                    f"prompts leave after block {last}, so all blocks up to it are needed"
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


def first_by_position(head: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
    """Before a trained head: PEFT before 0.20 takes its first argument by position only, and ZoeDepth names all."""
    name = None if args else next(iter(inspect.signature(head.original_module.forward).parameters), None)
    if name not in kwargs:
        return None
    return (kwargs[name],), {other: value for other, value in kwargs.items() if other != name}


def _without_prompts(output: Any, forward: Forward, innermost: bool) -> Any:
    """`output` with the prompts taken out of the hidden states in it, wherever they are.

    Hidden states that a compiler or a parallel wrapper made anew are known by their shape. That is safe in the
    innermost module alone: the outer ones may report those of a text tower too.
    """
    plan = forward.plans[0]
    prompted = forward.length + plan.config.num_virtual_tokens

    def walk(part: Any, by_shape: bool) -> Any:
        if isinstance(part, torch.Tensor):
            if part.ndim != 3 or part.shape[1] != prompted or not (by_shape or forward.holds_prompts(part)):
                return part
            return torch.cat((part[:, : plan.prompts.start], part[:, plan.prompts.stop :]), dim=1)
        if isinstance(part, MutableMapping):  # ModelOutput
            for name, value in list(part.items()):
                if isinstance(value, torch.Tensor) and value.ndim != 3:
                    continue
                changed = walk(value, innermost and name == "hidden_states")
                if changed is not value:
                    part[name] = changed
        elif type(part) in (tuple, list):
            by_shape = by_shape or (innermost and _are_states(part))
            changed = [walk(value, by_shape) for value in part]
            return part if all(a is b for a, b in zip(changed, part, strict=True)) else type(part)(changed)
        return part

    return walk(output, False)


def _are_states(part: tuple[Any, ...] | list[Any]) -> bool:
    """Whether these are hidden states (B, N, D) of blocks, None where others were asked for; attentions are not."""
    asked = [state for state in part if state is not None]
    return bool(asked) and all(isinstance(state, torch.Tensor) and state.ndim == 3 for state in asked)
