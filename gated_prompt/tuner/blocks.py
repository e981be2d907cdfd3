# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Hooks on the blocks: insert the prompts, mix them with a gate after each block, remove them after the last.

                   block k                 blocks k .. r-1                    block r
    [prefix, patches] -> [prefix, PROMPTS, patches] -> gate -> ... -> [prefix, patches]

with k = `insert_at` and r = `read_from` (None: the last block); blocks above r do not run (`skip.py`).

The prompts travel inside the hidden states, which keeps activation checkpointing correct; only inside a passive block
(`adapter.py`) are they held separately, for its attention (`attention.py`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArchitectureError, UnsupportedOperationError
from .adapter import Adapter, Role
from .bank import PromptBank
from .forward import LOCAL, Forward, Inputs, running
from .masks import widen_arguments
from .skip import check_skipped

UNSIZED = frozenset({type(None), bool, float})  # types of arguments that do not depend on the number of tokens


class EnterBlock:
    """Before a block: insert the prompts, or hold them separately if the block is passive."""

    def __init__(self, bank: PromptBank, index: int) -> None:
        self.bank, self.index = bank, index

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
        forward = running(self.bank)
        if forward is None:
            return None
        by_name = "hidden_states" in kwargs
        hidden = self._checked(
            block, forward, kwargs["hidden_states"] if by_name else args[0] if len(args) > 0 else None
        )
        adapter = forward.adapters[0]
        if not adapter.first <= self.index <= adapter.last:
            return None
        if self.index == adapter.first:
            for each in forward.adapters:
                self.bank.project_temperatures(each)
        role = forward.roles[self.index - adapter.first]
        length = hidden.shape[1] - (adapter.config.num_virtual_tokens if role.arrive else 0)
        if role.passive and not role.arrive:
            return None  # the attention reads the prompts from the bank
        if role.passive:
            prefix, LOCAL.held_prompts, patches = _split(hidden, adapter)
            hidden = torch.cat((prefix, patches), dim=1)
        elif not role.arrive:
            start = adapter.prompts.start
            prompts = entering_prompts(forward, self.index, hidden, hidden.shape[0])
            hidden = torch.cat((hidden[:, :start], prompts, hidden[:, start:]), dim=1)
            forward.remember(hidden)
        rest, named = args if by_name else args[1:], dict(kwargs)
        named.pop("hidden_states", None)
        if not role.passive and not UNSIZED.issuperset(map(type, (*rest, *named.values()))):
            first = block if self.index == adapter.first else None
            rest, named = widen_arguments(rest, named, adapter.prompts, length, first)
        return (rest, {**named, "hidden_states": hidden}) if by_name else ((hidden, *rest), named)

    def _checked(self, block: nn.Module, forward: Forward, hidden: Any) -> torch.Tensor:
        """Check that each block is called once, in order, with one token sequence per image of constant length."""
        name = type(block).__name__
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
            found = tuple(hidden.shape) if isinstance(hidden, torch.Tensor) else type(hidden).__name__
            raise ArchitectureError(
                f"{name} gets hidden states of shape {found}, expected (batch, tokens, width); prompts can only be "
                "inserted into a sequence of tokens"
            )
        if not forward.depth:  # called alone or recomputed: there is no order to check
            return hidden
        if self.index != forward.next_block:
            raise ArchitectureError(
                f"{name} {self.index} is called where block {forward.next_block} was expected: this model skips "
                "or repeats blocks, but prompts must pass through each block once, in order"
            )
        adapter = forward.adapters[0]
        place = self.index - adapter.first
        arrive = 0 <= place < len(forward.roles) and forward.roles[place].arrive
        held = adapter.config.num_virtual_tokens if arrive else 0
        if self.index == 0:
            forward.length = hidden.shape[1]
        elif hidden.shape[1] - held != forward.length:
            raise ArchitectureError(
                f"{name} {self.index} got {hidden.shape[1] - held} tokens besides the prompts, but block 0 got "
                f"{forward.length}: this model adds or drops tokens between its blocks, which prompts do not support"
            )
        if forward.rows is not None and len(forward.rows) != len(hidden):
            raise UnsupportedOperationError(
                f"{name} gets a batch of {len(hidden)}, but adapter_names names {len(forward.rows)} images; this "
                "model splits or merges images, so call it with one adapter at a time"
            )
        forward.next_block += 1
        return hidden


class LeaveBlock:
    """After a block: apply the gate; after the last block that runs, pool and remove the prompts."""

    def __init__(self, bank: PromptBank, index: int, uses_interface: bool) -> None:
        self.bank, self.index, self.uses_interface = bank, index, uses_interface

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        forward = running(self.bank)
        if forward is None or self.index < forward.adapters[0].first:
            return None
        if self.index > forward.adapters[0].last:
            check_skipped(forward, self.index, block)
            return None
        if self.uses_interface and forward.depth and forward.attended != self.index:
            raise ArchitectureError(
                f"{type(block).__name__} {self.index} did not compute its attention through AttentionInterface, where "
                "prompts and temperatures are applied; load the model with attn_implementation='sdpa' or 'eager'"
            )
        if forward.depth and forward.attended != self.index and self._has_temperature(forward):
            raise ArchitectureError(
                f"{type(block).__name__} {self.index} did not call its query projection, after which the temperature "
                "is applied; use prompts without one: GatedPromptConfig(temperature=False)"
            )
        role = forward.roles[self.index - forward.adapters[0].first]
        tokens: torch.Tensor = output[0] if isinstance(output, tuple) else output
        if self.index == forward.adapters[0].last:
            LOCAL.extra_outputs = len(output) - 1 if isinstance(output, tuple) else None
        entered: torch.Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if role.passive:
            left = self._leave_passive(forward, role, tokens)
        else:
            left = self._leave(forward, role, tokens, entered)
            # transformers 4.57 records the output before this hook, later versions record it after the hook.
            forward.remember(*((tokens, left) if role.stay else (tokens,)))
        if left is tokens:
            return None
        return (left, *output[1:]) if isinstance(output, tuple) else left

    def _has_temperature(self, forward: Forward) -> bool:
        return any(self.bank.inverse_temperature(adapter, self.index) is not None for adapter in forward.adapters)

    def _leave(self, forward: Forward, role: Role, tokens: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """Finish a block with the prompts in its sequence; `entered`: the tokens before the block."""
        if role.gate is None and role.stay:
            return tokens
        adapter = forward.adapters[0]
        prefix, prompts, patches = _split(tokens, adapter)
        if role.gate is not None:  # paper, Section 4: mix with the prompts that entered this block
            gate = self.bank.gate(adapter, role.gate)
            if forward.rows is not None:
                gate = by_image([self.bank.gate(each, role.gate) for each in forward.adapters], forward.rows, 3)
            # A copy: autograd saves the tensor, and a view would keep all tokens of the block in memory.
            prompts = torch.lerp(entered[:, adapter.prompts], prompts.clone(), gate.to(prompts))
        parts = (prefix, prompts, patches) if role.stay else self._pooled(adapter, prefix, prompts, patches)
        return torch.cat(parts, dim=1)

    def _leave_passive(self, forward: Forward, role: Role, tokens: torch.Tensor) -> torch.Tensor:
        """Finish a passive block: its prompts leave unchanged."""
        adapter = forward.adapters[0]
        held, LOCAL.held_prompts = LOCAL.held_prompts, None
        pools = self.index == adapter.last and adapter.config.pooling is not None
        if not (role.stay or pools):
            return tokens
        prompts = held if held is not None else entering_prompts(forward, self.index, tokens, tokens.shape[0])
        prefix, patches = tokens[:, : adapter.prompts.start], tokens[:, adapter.prompts.start :]
        parts = self._pooled(adapter, prefix, prompts, patches) if pools else (prefix, prompts, patches)
        return torch.cat(parts, dim=1)

    def _pooled(
        self, adapter: Adapter, prefix: torch.Tensor, prompts: torch.Tensor, patches: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return prefix and patches; after the last block, with the mean that `pooling` names as token 0."""
        pooling = adapter.config.pooling
        if pooling is None or self.index < adapter.last:
            return prefix, patches
        parts = {"prompts": (prompts,), "patches": (patches,), "prompts_and_patches": (prompts, patches)}[pooling]
        mean = torch.cat(parts, dim=1).mean(dim=1, keepdim=True)
        return mean, prefix[:, 1:], patches


def entering_prompts(forward: Forward, index: int, like: torch.Tensor, count: int) -> torch.Tensor:
    """Return the bank's prompts for this block, (count, P, D), with dropout per image in training."""
    bank, adapter = forward.bank, forward.adapters[0]
    if forward.rows is not None:
        prompts = torch.stack([bank.tokens(each, index).to(like.device, like.dtype) for each in forward.adapters])
        return prompts[forward.rows]
    prompts = bank.tokens(adapter, index).to(like.device, like.dtype).expand(count, -1, -1)
    return F.dropout(prompts, adapter.config.prompt_dropout, bank.training)


def by_image(values: list[torch.Tensor], rows: torch.Tensor, ndim: int) -> torch.Tensor:
    """Turn one scalar per adapter of a mixed batch into one per image, (B, 1, ...)."""
    return torch.stack(values)[rows].view(-1, *[1] * (ndim - 1))


class RequireInputGradient:
    """After the embeddings, in training: make their output require a gradient.

    Reentrant activation checkpointing passes gradients only to inputs that require one. Without this, prompts that
    enter a checkpointed block would silently not be trained.
    """

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.bank.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        forward = running(self.bank)
        if forward is None:
            return
        # Not needed if prompts are inserted at block 0: its input then requires a gradient anyway.
        adapter = forward.adapters[0]
        in_block_0 = adapter.first == 0 and not forward.roles[0].passive
        if not in_block_0 and not getattr(self.bank.blocks[0], "gradient_checkpointing", False):
            return
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.is_floating_point() and not first.requires_grad:
            first.requires_grad_()


def _split(tokens: torch.Tensor, adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # A split rather than three slices: its backward pass copies once.
    start, count = adapter.prompts.start, adapter.config.num_virtual_tokens
    prefix, prompts, patches = tokens.split((start, count, tokens.shape[1] - start - count), dim=1)
    return prefix, prompts, patches
