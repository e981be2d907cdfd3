# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the parts of one forward share: the adapters in use with their tensors, and what happened so far.

A forward begins when a module that contains the blocks is entered and ends when it is left (`scope.py`). It is kept in
a thread-local, so any number of threads can call one model.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..architecture.adapter import Adapter, Role
from ..errors import UnsupportedOperationError
from ..files.layout import PARAMETERS
from .request import LOCAL, Request


class PromptTensors(nn.Module):
    """The tensors of all adapters on one model, by adapter name, and what they encode (see `bank.PromptBank`)."""

    kinds = PARAMETERS
    gated_prompt_tokens: nn.ParameterDict
    gated_prompt_tokens_a: nn.ParameterDict
    gated_prompt_tokens_b: nn.ParameterDict
    gated_prompt_gate_logits: nn.ParameterDict
    gated_prompt_temperatures: nn.ParameterDict
    gated_prompt_head_gates: nn.ParameterDict

    def __init__(self) -> None:
        super().__init__()
        for name in PARAMETERS:
            setattr(self, name, nn.ParameterDict())
        self.adapters: dict[str, Adapter] = {}
        self.blocks: list[nn.Module] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []

    @property
    def adapters_in_use(self) -> tuple[Adapter, ...]:
        """The active adapter, as a tuple of one. Empty if adapters are disabled or none is active."""
        names = self._active_adapter
        adapter = None if self._disable_adapters or not names else self.adapters.get(names[0])
        return () if adapter is None else (adapter,)

    def tokens(self, adapter: Adapter, block: int) -> torch.Tensor:
        """Prompt tokens (P, D) that are inserted at this block."""
        row = block - adapter.first if adapter.config.deep else 0
        if adapter.config.prompt_rank is None:
            return self.gated_prompt_tokens[adapter.name][row]
        return self.gated_prompt_tokens_a[adapter.name][row] @ self.gated_prompt_tokens_b[adapter.name][row]

    def gate(self, adapter: Adapter, row: int, training: bool | None = None) -> torch.Tensor:
        """Gate value g = sigmoid(logit) of this row as a scalar tensor.

        With `hard_gates` it is 0 or 1. In eval mode, it is 1 if logit > 0. In training, it is 1 if logit + noise > 0
        with logistic noise, so with probability g, and its gradient is that of sigmoid(logit + noise) (straight
        through). All images of a batch share one draw. This is the Gumbel-sigmoid of the paper's Table 4, at Gumbel
        temperature 1. `training=None` means the mode of the model.
        """
        logit = self.gated_prompt_gate_logits[adapter.name][row]
        if not adapter.config.hard_gates:
            return torch.sigmoid(logit)
        if not (self.training if training is None else training):
            return (logit > 0).to(logit.dtype)
        soft = torch.sigmoid(logit + torch.logit(torch.rand_like(logit), eps=1e-6))
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def head_gates(self, adapter: Adapter, block: int) -> torch.Tensor:
        """The values a (H,) of this block, with zero start."""
        gates: torch.Tensor = self.gated_prompt_head_gates[adapter.name][block - adapter.first]
        return gates

    def inverse_temperature(self, adapter: Adapter, block: int) -> torch.Tensor | float | None:
        """1 / tau of this block as a scalar, or None if tau is fixed at exactly 1."""
        if not adapter.config.temperature:
            return None if adapter.config.temperature_init == 1.0 else 1.0 / adapter.config.temperature_init
        temperature = self.gated_prompt_temperatures[adapter.name][block - adapter.first]
        if torch.compiler.is_exporting():  # see project_temperatures
            temperature = temperature.clamp(*adapter.config.temperature_range)
        return 1.0 / temperature

    def project_temperatures(self, adapter: Adapter) -> None:
        """Clamp the temperatures to their range in place, outside autograd.

        A clamp inside the graph would have no gradient outside the range, so a temperature that left the range could
        never return. An exported program cannot change its weights and needs no gradient, so it clamps in the graph.
        """
        if adapter.config.temperature and not torch.compiler.is_exporting():
            self.gated_prompt_temperatures[adapter.name].data.clamp_(*adapter.config.temperature_range)


class Forward:
    """The state of one forward.

    `adapters`: those in use, with equal structure. Empty means the base alone, None the active one. `rows`: the index
    of each image's adapter, (B,). None means the first for all. `stacked`: the tensors of the only one of `adapters`
    hold those of several, along their second axis. `request`: what it computes, if not the active adapter.
    `in_sequence`: prompts are part of the token sequence in every block. `roles`: the role of the prompts in each
    block, from the first block that has them.
    """

    def __init__(
        self, bank: PromptTensors, adapters: tuple[Adapter, ...] | None, request: Request | None = None
    ) -> None:
        self.bank, self.request = bank, request
        self.rows: torch.Tensor | None = None
        self.stacked = False
        self.active, self.switches = bank.adapters_in_use, LOCAL.switches
        self.adapters = self.active if adapters is None else adapters
        self.training = bank.training
        self.task = -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()  # a backward pass
        self.roles: tuple[Role, ...] = ()
        self.choose_roles(request is not None and request.in_sequence)
        self.again = False  # blocks are recomputed (`checkpointing.py`)
        self.trains: bool | None = None  # the adapters' parameters wanted gradients. None: not asked yet
        self.with_gradients: bool | None = None  # some call of the blocks had gradients on. None: no call yet
        self.block = -1  # the block that is running
        self.level = -1  # of the innermost module around the blocks that is being called (`scope.Scope`)
        self.next_block = -1  # the block to be called next; -1: any up to the first that has prompts
        self.length = -1  # tokens per image without prompts
        self.attended = -1  # the last block whose temperature was applied
        self.held: torch.Tensor | None = None  # prompts (B, P, D) that the running passive block keeps apart
        self.extra_outputs: int | None = None  # values that the last block returned after its tokens. None: no tuple
        self.prompted: dict[int, weakref.ref[torch.Tensor]] = {}  # hidden states that contain prompts

    def choose_roles(self, in_sequence: bool) -> None:
        """Decide in which blocks the prompts are part of the token sequence."""
        self.in_sequence = in_sequence
        if not self.adapters:
            return
        adapter = self.adapters[0]
        self.roles = adapter.in_sequence if in_sequence else adapter.training if self.training else adapter.evaluation
        last, checkpointed = self.roles[-1], getattr(self.bank.blocks[-1], "gradient_checkpointing", False)
        if self.training and checkpointed and last.passive and last.arrive:
            # transformers recomputes the inside of the block, which would not find the prompts that are kept for it.
            self.roles = (*self.roles[:-1], adapter.in_sequence[-1])

    @property
    def uses(self) -> tuple[Any, ...]:
        """What makes two forwards of the same inputs the same."""
        return self.adapters, self.roles, self.training

    @property
    def in_the_middle(self) -> bool:
        """Whether blocks were called, but not all of them."""
        return bool(self.adapters) and 0 <= self.next_block < self.adapters[0].num_layers

    def is_current(self) -> bool:
        """Whether a forward that began now would use the same adapters.

        Switches by other threads do not count: a forward keeps the adapters that it began with.
        """
        chosen = self.request is not None and self.request.chooses
        same = self.switches == LOCAL.switches or chosen or self.bank.adapters_in_use == self.active
        return same and request_for(self.bank) is self.request

    def by_image(self, value: Callable[[Adapter], torch.Tensor]) -> torch.Tensor:
        """Return for each image of a mixed batch what `value` gives for its adapter, (B, ...)."""
        if self.stacked:
            values = value(self.adapters[0])
            return values[self.rows] if values.ndim else values  # a constant is the same for all
        return torch.stack([value(adapter) for adapter in self.adapters])[self.rows]

    def remember(self, *states: torch.Tensor) -> None:
        """Note that these hidden states contain prompts: models return the same tensor objects that the hooks see."""
        if not torch.compiler.is_compiling():
            for state in states:
                self.prompted[id(state)] = weakref.ref(state)

    def holds_prompts(self, state: torch.Tensor) -> bool:
        """Whether `remember` noted this very tensor."""
        noted = self.prompted.get(id(state))
        return noted is not None and noted() is state


def request_for(bank: PromptTensors) -> Request | None:
    """Return the innermost request for `bank`. None if there is none, or if this thread switched adapters since."""
    request = LOCAL.request
    while request is not None and request.bank is not bank:
        request = request.outer
    if request is None or not request.chooses or request.switches == LOCAL.switches:
        return request
    return request if bank.adapters_in_use == request.active else None


def begin(bank: PromptTensors) -> Forward:
    """Return a new forward for what this thread is asked to compute."""
    request = None if LOCAL.request is None else request_for(bank)
    if request is None or not request.chooses:
        return Forward(bank, None, request)
    if request.images is None:
        return Forward(bank, request.adapters or (), request)
    forward = Forward(bank, request.images.together, request)
    forward.rows, forward.stacked = request.images.rows, request.images.stacked
    return forward


def current(bank: PromptTensors) -> Forward:
    """Return the forward of `bank` in this thread, a new one if none is running.

    Raises:
        UnsupportedOperationError: adapters were switched between two blocks.
    """
    forward = LOCAL.forward
    if forward is None or forward.bank is not bank:
        return begin(bank)
    if (forward.request is LOCAL.request and forward.switches == LOCAL.switches) or forward.is_current():
        return forward
    if forward.in_the_middle:
        raise UnsupportedOperationError(
            f"adapters were switched, deleted or disabled between two blocks of one forward, before block "
            f"{forward.next_block}. Do so before or after the forward of the whole model."
        )
    return begin(bank)


def running(bank: PromptTensors) -> Forward | None:
    """Return the forward of `bank` in this thread. None if only the base is computed."""
    forward = current(bank)
    return forward if forward.adapters else None
