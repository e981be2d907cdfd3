# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Around each block: insert the prompts, mix them with a gate after the block, remove them after the last.

                   block k                 blocks k .. r-1                    block r
    [prefix, patches] -> [prefix, PROMPTS, patches] -> gate -> ... -> [prefix, patches]

with k = `insert_at` and r = `read_from` (None: the last block). Blocks above r return their input.

The prompts travel inside the hidden states, which keeps activation checkpointing correct. Only inside a passive block
(`adapter.py`) are they held apart, for its attention (`attention.py`).
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..architecture.adapter import Adapter, Role
from ..architecture.masks import widen_arguments
from ..errors import ArchitectureError, UnsupportedOperationError
from .bank import PromptBank
from .checkpointing import note, recomputed
from .forward import Forward, begin, current, running
from .request import LOCAL
from .scope import Replacement

UNSIZED = frozenset({type(None), bool, float})  # types of arguments that do not depend on the number of tokens


class PromptBlock(Replacement):
    """Replaces a block's `forward`. `scope`: the level of the module that calls the blocks (`scope.Scope`)."""

    def __init__(self, bank: PromptBank, block: nn.Module, index: int, scope: int, uses_interface: bool) -> None:
        super().__init__(bank, block)
        self.index, self.scope, self.uses_interface = index, scope, uses_interface
        # The tokens' name where they are given by name: hidden_states, or hidden_state in Llama 4.
        self.name = list(inspect.signature(type(block).forward).parameters)[1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block with what the adapter adds."""
        original = type(self.module).forward.__get__(self.module) if self.before is None else self.before
        if self.removed:
            return original(*args, **kwargs)
        by_name = self.name in kwargs
        hidden = kwargs[self.name] if by_name else args[0] if args else None
        outer = forward = LOCAL.forward
        task = -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()
        if (
            forward is None
            or forward.bank is not self.bank
            or forward.level < self.scope
            or forward.task != task
            or (
                (forward.request is not LOCAL.request or forward.switches != LOCAL.switches)
                and not forward.is_current()
            )
        ):
            forward = self._alone(forward, hidden, task)
        if (torch.is_grad_enabled() or getattr(hidden, "requires_grad", False)) and not forward.again:
            note(forward, hidden)
        block = forward.block
        try:
            LOCAL.forward, forward.block = forward, self.index
            if not forward.adapters or self.index < forward.adapters[0].first:
                return original(*args, **kwargs)
            hidden = self._checked(forward, hidden)
            if self.index > forward.adapters[0].last:
                # In the format of the last block that ran, with None in place of its attention weights.
                return hidden if forward.extra_outputs is None else (hidden, *[None] * forward.extra_outputs)
            rest, named = args[1:], kwargs
            if by_name:
                rest, named = args, {name: value for name, value in kwargs.items() if name != self.name}
            entering, rest, named = self._enter(forward, hidden, rest, named)
            if by_name:
                return self._leave(forward, entering, original(*rest, **{self.name: entering}, **named))
            return self._leave(forward, entering, original(entering, *rest, **named))
        finally:
            LOCAL.forward, forward.block, forward.held = outer, block, None

    def _alone(self, forward: Forward | None, hidden: Any, task: int) -> Forward:
        """Return a forward for a block that is called outside of the module that holds the blocks.

        Raises:
            UnsupportedOperationError: what the block returns would hold prompts that nothing removes.
        """
        if forward is None or forward.bank is not self.bank or forward.task != task:
            if task >= 0:
                return recomputed(self.bank, hidden)
            forward = begin(self.bank)
        elif forward.again:
            return forward
        else:
            forward = current(self.bank)
        images = forward.request.images if forward.request is not None else None
        place = self.index - forward.adapters[0].first if forward.adapters else -1
        leaks = 0 <= place < len(forward.roles) and (forward.roles[place].arrive or forward.roles[place].stay)
        if leaks or (images is not None and len(images.groups) > 1):
            raise UnsupportedOperationError(
                f"{type(self.module).__name__} {self.index} is called outside of the forward of the module that holds "
                "the blocks, so nothing would remove the prompts from what is read between them. Call the model, "
                "or use disable_adapter() or deep prompts (GatedPromptConfig(deep=True))."
            )
        return forward

    def _checked(self, forward: Forward, hidden: Any) -> torch.Tensor:
        """Check that each block is called once, in order, with one token sequence per image of constant length."""
        name = type(self.module).__name__
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
            found = f"of shape {tuple(hidden.shape)}" if isinstance(hidden, torch.Tensor) else type(hidden).__name__
            raise ArchitectureError(
                f"{name} gets hidden states {found}, expected (batch, tokens, width) as the first argument or as "
                f"{self.name}. Prompts can only be inserted into a sequence of tokens."
            )
        if forward.level < self.scope or forward.again:  # called alone or recomputed: there is no order to check
            return hidden
        adapter = forward.adapters[0]
        expected = adapter.first if forward.next_block < 0 else forward.next_block
        if self.index != expected:
            raise ArchitectureError(
                f"{name} {self.index} is called where block {expected} was expected: this model skips "
                "or repeats blocks, but prompts must pass through each block once, in order"
            )
        forward.next_block = self.index + 1
        place = self.index - adapter.first
        arrive = place < len(forward.roles) and forward.roles[place].arrive
        length = hidden.shape[1] - (adapter.config.num_virtual_tokens if arrive else 0)
        if place == 0:
            forward.length = length
        elif length != forward.length:
            raise ArchitectureError(
                f"{name} {self.index} got {length} tokens besides the prompts, but block {adapter.first} got "
                f"{forward.length}: this model adds or drops tokens between its blocks, which prompts do not support"
            )
        if forward.rows is not None:
            if forward.rows.shape[0] != hidden.shape[0]:  # not len(), which fixes the batch size in an export
                raise UnsupportedOperationError(
                    f"{name} gets a batch of {len(hidden)}, but adapter_names names {len(forward.rows)} images. This "
                    "model splits or merges images, so call it with one adapter at a time."
                )
            forward.rows = forward.rows.to(hidden.device)
        return hidden

    def _enter(
        self, forward: Forward, hidden: torch.Tensor, rest: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
        """Return the hidden states and the other arguments with room for the prompts."""
        adapter = forward.adapters[0]
        if self.index == adapter.first:
            for each in forward.adapters:
                self.bank.project_temperatures(each)
        role = forward.roles[self.index - adapter.first]
        length = hidden.shape[1] - (adapter.config.num_virtual_tokens if role.arrive else 0)
        if length <= adapter.prompts.start:
            raise ArchitectureError(
                f"{type(self.module).__name__} gets {length} tokens, and num_prefix_tokens={adapter.prompts.start} "
                "leaves no patch among them. Leave num_prefix_tokens out, so that it is detected."
            )
        if role.passive and not role.arrive:
            return hidden, rest, named  # the attention reads the prompts from the bank
        if role.passive:
            prefix, forward.held, patches = _split(hidden, adapter)
            return torch.cat((prefix, patches), dim=1), rest, named
        if not role.arrive:
            start = adapter.prompts.start
            prompts = entering_prompts(forward, self.index, hidden, hidden.shape[0])
            hidden = torch.cat((hidden[:, :start], prompts, hidden[:, start:]), dim=1)
            forward.remember(hidden)
        if not UNSIZED.issuperset(map(type, (*rest, *named.values()))):
            first = self.module if self.index == adapter.first else None
            rest, named = widen_arguments(rest, named, adapter.prompts, length, first)
        return hidden, rest, named

    def _leave(self, forward: Forward, entered: torch.Tensor, output: Any) -> Any:
        """Apply the gate. After the last block that runs, pool and remove the prompts."""
        if forward.attended != self.index and (
            self.uses_interface
            or any(self.bank.inverse_temperature(each, self.index) is not None for each in forward.adapters)
        ):
            raise ArchitectureError(
                f"{type(self.module).__name__} {self.index} did not compute its attention through AttentionInterface, "
                "where prompts and temperatures are applied. Load the model with attn_implementation='sdpa' or "
                "'eager'."
                if self.uses_interface
                else f"{type(self.module).__name__} {self.index} did not call its query projection, after which the "
                "temperature is applied. Use prompts without one: GatedPromptConfig(temperature=False)."
            )
        role = forward.roles[self.index - forward.adapters[0].first]
        tokens: torch.Tensor = output[0] if isinstance(output, tuple) else output
        if self.index == forward.adapters[0].last:
            forward.extra_outputs = len(output) - 1 if isinstance(output, tuple) else None
        if role.passive:
            left = self._leave_passive(forward, role, tokens)
        else:
            left = self._mixed(forward, role, tokens, entered)
            # transformers 4.57 records what the block itself returns.
            forward.remember(*((tokens, left) if role.stay else (tokens,)))
        if left is tokens:
            return output
        return (left, *output[1:]) if isinstance(output, tuple) else left

    def _mixed(self, forward: Forward, role: Role, tokens: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """Finish a block with the prompts in its sequence. `entered`: the tokens before the block."""
        if role.gate is None and role.stay:
            return tokens
        adapter = forward.adapters[0]
        prefix, prompts, patches = _split(tokens, adapter)
        if role.gate is not None:  # paper, Section 4: mix with the prompts that entered this block
            gate = self.bank.gate(adapter, role.gate, forward.training)
            if forward.rows is not None:
                row = role.gate
                gate = one_per_image(forward.by_image(lambda each: self.bank.gate(each, row, forward.training)), 3)
            # A copy: autograd saves the tensor, and a view would keep all tokens of the block in memory.
            prompts = torch.lerp(entered[:, adapter.prompts], prompts.clone(), gate.to(prompts))
        parts = (prefix, prompts, patches) if role.stay else self._pooled(adapter, prefix, prompts, patches)
        return torch.cat(parts, dim=1)

    def _leave_passive(self, forward: Forward, role: Role, tokens: torch.Tensor) -> torch.Tensor:
        """Finish a passive block: its prompts leave unchanged."""
        adapter, held = forward.adapters[0], forward.held
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
        """Return prefix and patches. After the last block, with the mean that `pooling` names as token 0."""
        pooling = adapter.config.pooling
        if pooling is None or self.index < adapter.last:
            return prefix, patches
        parts = {"prompts": (prompts,), "patches": (patches,), "prompts_and_patches": (prompts, patches)}[pooling]
        mean = torch.cat(parts, dim=1).mean(dim=1, keepdim=True)
        return mean, prefix[:, 1:], patches


class CheckCalls:
    """After the last block: check that the blocks were called through `PromptBlock`."""

    def __init__(self, bank: PromptBank, scope: int) -> None:
        self.bank, self.scope = bank, scope

    def __call__(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward = LOCAL.forward
        if forward is None or forward.bank is not self.bank or forward.level < self.scope:
            return
        if forward.switches != LOCAL.switches and not forward.is_current():
            return  # only the base is computed
        if forward.adapters and forward.next_block != len(self.bank.blocks):
            raise UnsupportedOperationError(
                f"{type(block).__name__} ran without its adapter, since the `forward` of blocks was replaced after "
                "the adapter was added. Add the adapter last."
            )


def entering_prompts(forward: Forward, index: int, like: torch.Tensor, count: int) -> torch.Tensor:
    """Return the bank's prompts for this block, (count, P, D), with dropout per image in training."""
    bank, adapter = forward.bank, forward.adapters[0]
    if forward.rows is not None:
        return forward.by_image(lambda each: bank.tokens(each, index).to(like.device, like.dtype))
    prompts = bank.tokens(adapter, index).to(like.device, like.dtype).expand(count, -1, -1)
    return F.dropout(prompts, adapter.config.prompt_dropout, forward.training)


def one_per_image(values: torch.Tensor, ndim: int) -> torch.Tensor:
    """Turn one scalar per image into a factor of tensors with `ndim` axes, (B, 1, ...)."""
    return values.view(-1, *[1] * (ndim - 1))


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
        if (forward := running(self.bank)) is None:
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
