# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The state of one forward: which adapter each image uses, and what the hooks have seen so far.

It is created when the module that contains the blocks is called, and kept in a thread-local, so any number of threads
can call one model. A block that runs outside of that module (called alone, or recomputed in a backward pass) gets a
new state for the active adapter.
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
from .adapter import Adapter, Role
from .bank import PromptBank

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Forward:
    """What the hooks of one forward share.

    `adapters`: the adapters in use, with equal structure; empty: the base alone. `rows`: the index of each image's
    adapter, (B,); None: the first for all. `in_sequence`: prompts are part of the token sequence in every block.
    `chosen`: the adapters were requested, so the heads of the active adapter may be wrong. `roles`: the role of the
    prompts in each block, from the first block that has them.
    """

    def __init__(
        self,
        bank: PromptBank,
        adapters: tuple[Adapter, ...],
        rows: torch.Tensor | None = None,
        in_sequence: bool = False,
    ) -> None:
        self.bank, self.adapters, self.rows = bank, adapters, rows
        self.chosen = False
        self.roles: tuple[Role, ...] = ()
        self.choose_roles(in_sequence)
        self.outer: Forward | None = None
        self.images: Images | None = None
        self.depth = 0  # how many of the modules around the blocks are being called
        self.next_block = 0
        self.length = -1  # tokens per image without prompts
        self.attended = -1  # the last block whose temperature was applied
        self.skipped = -1  # the last block that `skip.py` did not run
        self.prompted: dict[int, weakref.ref[torch.Tensor]] = {}  # hidden states that contain prompts

    def choose_roles(self, in_sequence: bool) -> None:
        """Decide in which blocks the prompts are part of the token sequence."""
        self.in_sequence = in_sequence
        if not self.adapters:
            return
        adapter, training = self.adapters[0], self.bank.training
        self.roles = adapter.in_sequence if in_sequence else adapter.training if training else adapter.evaluation
        last, checkpointed = self.roles[-1], getattr(self.bank.blocks[-1], "gradient_checkpointing", False)
        if training and checkpointed and last.passive and last.arrive:
            # The block is recomputed without its hooks, and would not find the prompts that they hold for it.
            self.roles = (*self.roles[:-1], adapter.in_sequence[-1])

    def remember(self, *states: torch.Tensor) -> None:
        """Note that these hidden states contain prompts: models return the same tensor objects that the hooks see."""
        if self.depth and not torch.compiler.is_compiling():
            for state in states:
                self.prompted[id(state)] = weakref.ref(state)

    def holds_prompts(self, state: torch.Tensor) -> bool:
        """Whether `remember` noted this very tensor."""
        noted = self.prompted.get(id(state))
        return noted is not None and noted() is state


class Images(Protocol):
    """The images of a mixed batch (see `mixed_batch.py`)."""

    def begin(self, bank: PromptBank, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Forward, Inputs]: ...

    def finish(self, module: nn.Module, output: Any) -> Any: ...

    def through(self, heads: list[nn.Module], rows: torch.Tensor, inputs: Inputs) -> Any: ...


class Request(NamedTuple):
    """Overrides of the defaults for forwards of `bank`.

    `adapters`: the adapter to use, empty for the base; None: the active one. `images`: those of a mixed batch.
    `in_sequence`: see `Forward`. `own_heads`: use the heads of the active adapter all the same.
    """

    bank: PromptBank
    adapters: tuple[Adapter, ...] | None = None
    images: Images | None = None
    in_sequence: bool = False
    own_heads: bool = False


class _Local(threading.local):
    def __init__(self) -> None:  # runs in each thread
        self.forward: Forward | None = None
        self.request: Request | None = None
        self.held_prompts: torch.Tensor | None = None  # prompts (B, P, D) that the running block holds separately
        self.extra_outputs: int | None = None  # values that the last block returned after its tokens; None: no tuple


LOCAL = _Local()


def running(bank: PromptBank) -> Forward | None:
    """Return the forward of `bank` in this thread, or None if only the base is computed."""
    forward = LOCAL.forward
    if forward is None or forward.bank is not bank:
        forward = _asked(bank)
    return forward if forward.adapters else None


def _asked(bank: PromptBank) -> Forward:
    request = LOCAL.request
    if request is None or request.bank is not bank:
        return Forward(bank, bank.adapters_in_use)
    adapters = bank.adapters_in_use if request.adapters is None else request.adapters
    forward = Forward(bank, adapters, in_sequence=request.in_sequence)
    forward.chosen = request.adapters is not None and not request.own_heads
    return forward


@contextmanager
def requested(request: Request) -> Iterator[None]:
    """Apply `request` to the forwards of this thread inside the `with` block."""
    before, LOCAL.request = LOCAL.request, request
    try:
        yield
    finally:
        LOCAL.request = before


@contextmanager
def forward_context(tuner: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
    """Wrap each forward of a `PeftModel`: take `adapter_names` out of the arguments, and explain failures.

    Raises:
        AdapterNameError, UnsupportedOperationError: `adapter_names` is invalid (see `mixed_batch.py`).
        ArchitectureError: the forward fails only with prompts, since the model has something, such as a table of
            positions, that fits its own number of tokens only.
    """
    names = kwargs.pop("adapter_names", None)
    with nullcontext() if names is None else tuner.mixed_batch(names):
        try:
            yield
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, (GatedPromptError, torch.OutOfMemoryError)) or not _runs_without(tuner, args, kwargs):
                raise
            raise ArchitectureError(
                f"{type(tuner.model).__name__} fails with prompts among its tokens, but runs without them: {error}"
            ) from error


def _runs_without(tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the base alone accepts these inputs."""
    try:
        with torch.no_grad(), requested(Request(getattr(tuner.model, BANK), adapters=())):
            tuner.model(*args, **kwargs)
    except Exception:
        return False
    return True


class EnterModel:
    """Before a module that contains the blocks: begin a forward if this is the outermost one."""

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
        if asked and not forward.in_sequence:  # so that attention maps have rows for the prompts
            forward.choose_roles(in_sequence=True)
        if forward.adapters and forward.adapters[0].last < forward.adapters[0].num_layers - 1:
            _refuse_skipped_states(module, kwargs, forward.adapters[0])
        if self.innermost:
            forward.next_block, forward.length = 0, -1
        return changed

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Forward, Inputs | None]:
        if getattr(module, "_is_replica", False):
            raise UnsupportedOperationError(
                "nn.DataParallel is not supported: hooks of its replicas would use the prompts on the first device; "
                "use DistributedDataParallel (accelerate launch or torchrun), or limit the process to one GPU "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        request = LOCAL.request
        if request is not None and request.bank is self.bank and request.images is not None:
            return request.images.begin(self.bank, args, kwargs)
        return _asked(self.bank), None


def _refuse_skipped_states(module: nn.Module, kwargs: dict[str, Any], adapter: Adapter) -> None:
    """Refuse to report hidden states of blocks that do not run, which would all be the same tensor.

    `output_hidden_states` asks for all states or none, or for some of the L + 1 by index (transformers 5.2x). The last
    one alone is allowed: the head reads it.
    """
    asked = kwargs.get("output_hidden_states")
    if asked is None:
        asked = getattr(getattr(module, "config", None), "output_hidden_states", False)
    count = adapter.num_layers + 1
    indices = range(count if asked else 0) if isinstance(asked, bool) else [asked] if isinstance(asked, int) else asked
    chosen = {index % count for index in indices}
    if chosen != {count - 1} and max(chosen, default=0) > adapter.last + 1:
        raise UnsupportedOperationError(
            f"{type(module).__name__} was asked for hidden states above block {adapter.last}, but adapter "
            f"{adapter.name!r} has read_from={adapter.last}, so those blocks do not run; read blocks 0 to "
            f"{adapter.last} with forward hooks, or use read_from=None"
        )


class LeaveModel:
    """After a module that contains the blocks, even if it raised: remove the prompts from its output."""

    def __init__(self, bank: PromptBank, innermost: bool) -> None:
        self.bank, self.innermost = bank, innermost

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        forward = LOCAL.forward
        if forward is None or forward.bank is not self.bank:
            return None
        forward.depth -= 1
        if forward.depth == 0:
            LOCAL.forward, LOCAL.held_prompts = forward.outer, None
        if output is None:  # the module raised
            return None
        if forward.adapters:
            last = forward.adapters[0].last
            if self.innermost and 0 < forward.next_block <= last:
                raise ArchitectureError(
                    f"{type(module).__name__} ran {forward.next_block} of its {forward.adapters[0].num_layers} "
                    f"blocks; prompts are removed after block {last}, so all blocks up to it must run"
                )
            output = _without_prompts(output, forward, self.innermost)
        if forward.depth == 0 and forward.images is not None:
            return forward.images.finish(module, output)
        return output


class SwitchHead:
    """After a trained head: if adapters were requested, return for each image the output of its own adapter's head."""

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank

    def __call__(self, head: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        forward = LOCAL.forward
        if forward is None or forward.bank is not self.bank or not forward.chosen:
            return None
        trained = head.modules_to_save
        own = [adapter.name in trained for adapter in forward.adapters]  # ModuleDict has no get()
        heads = [trained[p.name] if o else head.original_module for p, o in zip(forward.adapters, own, strict=True)]
        if forward.rows is None or forward.images is None:
            return (heads[0] if heads else head.original_module)(*args, **kwargs)
        return forward.images.through(heads, forward.rows, (args, kwargs))


def first_by_position(head: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
    """Before a trained head: pass its first argument by position, as PEFT before 0.20 needs; ZoeDepth names it."""
    name = None if args else next(iter(inspect.signature(head.original_module.forward).parameters), None)
    if name not in kwargs:
        return None
    return (kwargs[name],), {other: value for other, value in kwargs.items() if other != name}


def _without_prompts(output: Any, forward: Forward, innermost: bool) -> Any:
    """Remove the prompts from all hidden states in `output`, however nested.

    Hidden states that a compiler or a parallel wrapper recreated are recognized by their shape. That is safe in the
    innermost module only: outer modules may also return those of a text tower.
    """
    adapter = forward.adapters[0]
    prompted = forward.length + adapter.config.num_virtual_tokens

    def walk(part: Any, by_shape: bool) -> Any:
        if isinstance(part, torch.Tensor):
            if part.ndim != 3 or part.shape[1] != prompted or not (by_shape or forward.holds_prompts(part)):
                return part
            return torch.cat((part[:, : adapter.prompts.start], part[:, adapter.prompts.stop :]), dim=1)
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
    """Whether these are hidden states (B, N, D) of blocks, with None for those not requested; attentions are not."""
    asked = [state for state in part if state is not None]
    return bool(asked) and all(isinstance(state, torch.Tensor) and state.ndim == 3 for state in asked)
