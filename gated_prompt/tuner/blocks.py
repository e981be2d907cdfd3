# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What happens to the tokens on their way through the blocks.

                   block k                 blocks k .. L-2                    block L-1
    [prefix, patches] -> [prefix, PROMPTS, patches] -> gate -> ... -> [prefix, patches]

The prompts travel inside the hidden states, which keeps activation checkpointing correct; only inside a passive block
(`passage.py`) they stand aside.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArchitectureError, UnsupportedOperationError
from .bank import PromptBank
from .masks import widen_argument
from .plan import Plan

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class EnterBlock:
    """Before a block: insert the prompts, or replace them when deep, and widen masks to the new length."""

    def __init__(self, bank: PromptBank, index: int) -> None:
        self.bank, self.index = bank, index

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        plan = self.bank.plan
        if plan is None or self.index < plan.config.insert_at:
            return None
        hidden: torch.Tensor = args[0]
        if self.index == plan.config.insert_at:
            if hidden.ndim != 3:
                raise ArchitectureError(
                    f"the blocks of this model work on hidden states of shape {tuple(hidden.shape)}, not on a row of "
                    "tokens (batch, tokens, width); prompts can only be put into a row"
                )
            self.bank.begin(plan, hidden)
        if self.bank.is_passive(plan, self.index):
            return (self._take_prompts(plan, hidden), *args[1:]), kwargs
        if plan.config.deep or self.index == self.bank.passage.insertion:
            hidden = self._with_prompts(plan, hidden)
        length = self.bank.sequence_length
        rest = [widen_argument(place, a, plan, length) for place, a in enumerate(args[1:], start=1)]
        named = {name: widen_argument(name, a, plan, length) for name, a in kwargs.items()}
        return (hidden, *rest), named

    def _with_prompts(self, plan: Plan, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` with prompts behind the prefix tokens, in the place of those of the block before, if any."""
        held = hidden.shape[1] - self.bank.sequence_length
        prompts = self._prompts(plan, hidden, hidden.shape[0])
        return torch.cat((hidden[:, : plan.prompts.start], prompts, hidden[:, plan.prompts.start + held :]), dim=1)

    def _take_prompts(self, plan: Plan, hidden: torch.Tensor) -> torch.Tensor:
        """Set the block's prompts aside for its attention; return the other tokens."""
        if not plan.config.deep and self.index > self.bank.passage.insertion:
            prefix, prompts, patches = _split(hidden, plan)
            hidden = torch.cat((prefix, patches), dim=1)
        else:
            dropped = self.bank.training and plan.config.prompt_dropout > 0
            prompts = self._prompts(plan, hidden, hidden.shape[0] if dropped else 1)
        gate = self.bank.gate(plan, self.index) if torch.is_grad_enabled() else None
        if gate is not None:
            prompts = prompts + 0.0 * gate.to(prompts.dtype)  # a gradient of zero, as DDP waits for one
        self.bank.keys_only = prompts
        return hidden

    def _prompts(self, plan: Plan, hidden: torch.Tensor, count: int) -> torch.Tensor:
        """The prompts that enter here, (count, P, D), dropped out for each image where that is on."""
        prompts = self.bank.tokens(plan, self.index).to(hidden.dtype).expand(count, -1, -1)
        return F.dropout(prompts, plan.config.prompt_dropout, self.bank.training)


class LeaveBlock:
    """After a block: gate the prompts; after the last block pool and take the prompts out."""

    def __init__(self, bank: PromptBank, index: int) -> None:
        self.bank, self.index = bank, index

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        plan = self.bank.plan
        if plan is None or self.index < plan.config.insert_at:
            return None
        tokens: torch.Tensor = output[0] if isinstance(output, tuple) else output
        passive = self.bank.is_passive(plan, self.index)
        left = self._leave_passive(plan, tokens) if passive else self._leave(plan, tokens, args[0])
        if left is tokens:
            return None
        return (left, *output[1:]) if isinstance(output, tuple) else left

    def _leave(self, plan: Plan, tokens: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """What follows a block that had the prompts among its tokens; `entered` are those before the block."""
        gate, last = self.bank.gate(plan, self.index), self.index == plan.num_layers - 1
        if gate is None and not last:
            return tokens
        prefix, prompts, patches = _split(tokens, plan)
        if gate is not None:  # paper, Section 4: mixed with the prompts that entered this block
            # A copy: autograd keeps what is mixed, and a view would keep all tokens of the block with it.
            prompts = torch.lerp(entered[:, plan.prompts], prompts.clone(), gate.to(prompts.dtype))
        if last:
            return torch.cat(_pooled(plan, prefix, prompts, patches), dim=1)
        return torch.cat((prefix, prompts, patches), dim=1)

    def _leave_passive(self, plan: Plan, tokens: torch.Tensor) -> torch.Tensor:
        """What follows a block that saw the prompts as keys and values only; they leave it as they came."""
        prompts, self.bank.keys_only = self.bank.keys_only, None
        if prompts is None:
            raise UnsupportedOperationError(f"block {self.index} was left twice; its forward must not be called alone")
        last, start = self.index == plan.num_layers - 1, plan.prompts.start
        if plan.config.pooling is None if last else plan.config.deep or self.index < self.bank.passage.insertion:
            return tokens
        prefix, patches = tokens[:, :start], tokens[:, start:]
        prompts = prompts.expand(tokens.shape[0], -1, -1)
        return torch.cat(_pooled(plan, prefix, prompts, patches) if last else (prefix, prompts, patches), dim=1)


class ScaleQueries:
    """After the query projection: divide by the temperature, which divides the block's attention logits by it."""

    def __init__(self, bank: PromptBank, index: int, fused: bool) -> None:
        self.bank, self.index, self.fused = bank, index, fused

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        plan = self.bank.plan
        folded = self.bank.folded is not None  # into the weights of this module
        scale = None if plan is None or folded else self.bank.inverse_temperature(plan, self.index)
        if scale is None:
            return None
        if isinstance(scale, torch.Tensor):
            scale = scale.to(output.dtype)
        if self.fused:
            rows = output.new_ones(3, output.shape[-1] // 3)
            return output * torch.cat((rows[:1] * scale, rows[1:])).flatten()
        if isinstance(scale, torch.Tensor) and scale.requires_grad and torch.is_grad_enabled():
            scaled: torch.Tensor = ScaleKeepingOutput.apply(output, scale)
            return scaled
        return output * scale


class ScaleKeepingOutput(torch.autograd.Function):
    """`queries * scale` that keeps its output for the backward pass, as attention does anyway, not the queries too."""

    @staticmethod
    def forward(queries: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return queries * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output, scale = ctx.saved_tensors
        return gradient * scale, (gradient * output).sum() / scale


def _split(tokens: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # One split, not three slices: its backward pass is one copy.
    start, count = plan.prompts.start, plan.config.num_virtual_tokens
    prefix, prompts, patches = tokens.split((start, count, tokens.shape[1] - start - count), dim=1)
    return prefix, prompts, patches


def _pooled(
    plan: Plan, prefix: torch.Tensor, prompts: torch.Tensor, patches: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Prefix and patch tokens, with the mean that `pooling` names in the place of token 0."""
    pooling = plan.config.pooling
    if pooling is None:
        return prefix, patches
    parts = {"prompts": (prompts,), "patches": (patches,), "prompts_and_patches": (prompts, patches)}[pooling]
    mean = torch.cat(parts, dim=1).mean(dim=1, keepdim=True)
    return mean, prefix[:, 1:], patches
