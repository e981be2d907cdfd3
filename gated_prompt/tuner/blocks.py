# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What happens to the tokens on their way through the blocks.

                   block k                 blocks k .. r-1                    block r
    [prefix, patches] -> [prefix, PROMPTS, patches] -> gate -> ... -> [prefix, patches]

with k = `insert_at` and r = `read_from`, the last block if that is None; blocks above r do not run (`skip.py`).

The prompts travel inside the hidden states, which keeps activation checkpointing correct; only inside a passive block
(`plan.py`) are they held separately, for its attention (`attention.py`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..architecture import AttentionParts
from ..errors import ArchitectureError, UnsupportedOperationError
from .bank import PromptBank
from .forward import LOCAL, Forward, Inputs, running
from .masks import widen_arguments
from .plan import Plan, Step
from .skip import check_skipped


class EnterBlock:
    """Before a block: insert the prompts, or hold them separately for a passive block."""

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
        plan = forward.plans[0]
        if not plan.first <= self.index <= plan.last:
            return None
        if self.index == plan.first:
            for each in forward.plans:
                self.bank.project_temperatures(each)
        step = forward.steps[self.index - plan.first]
        length = hidden.shape[1] - (plan.config.num_virtual_tokens if step.arrive else 0)
        if step.passive and not step.arrive:
            return None  # the attention takes the prompts from the bank
        if step.passive:
            prefix, LOCAL.aside, patches = _split(hidden, plan)
            hidden = torch.cat((prefix, patches), dim=1)
        elif not step.arrive:
            start = plan.prompts.start
            prompts = entering_prompts(forward, self.index, hidden, hidden.shape[0])
            hidden = torch.cat((hidden[:, :start], prompts, hidden[:, start:]), dim=1)
            forward.remember(hidden)
        rest, named = args if by_name else args[1:], kwargs
        for value in (*rest, *named.values()):
            if value is not None and value is not hidden and not step.passive and not isinstance(value, (bool, float)):
                rest, named = widen_arguments(
                    rest, named, plan.prompts, length, block if self.index == plan.first else None
                )
                break
        return (rest, {**named, "hidden_states": hidden}) if by_name else ((hidden, *rest), named)

    def _checked(self, block: nn.Module, forward: Forward, hidden: Any) -> torch.Tensor:
        """Refuse blocks that are not called once each, in order, with one row of tokens of the same length."""
        name = type(block).__name__
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
            found = tuple(hidden.shape) if isinstance(hidden, torch.Tensor) else type(hidden).__name__
            raise ArchitectureError(
                f"{name} works on hidden states of shape {found}, not on a row of tokens (batch, tokens, width); "
                "prompts can only be put into a row"
            )
        if not forward.depth:  # called alone, or computed again: there is no run of blocks to compare with
            return hidden
        if self.index != forward.next_block:
            raise ArchitectureError(
                f"{name} {self.index} is called where block {forward.next_block} was expected: this model leaves out "
                "blocks or calls them twice, and prompts have to pass each block once, in order"
            )
        plan = forward.plans[0]
        place = self.index - plan.first
        arrive = 0 <= place < len(forward.steps) and forward.steps[place].arrive
        held = plan.config.num_virtual_tokens if arrive else 0
        if self.index == 0:
            forward.length = hidden.shape[1]
        elif hidden.shape[1] - held != forward.length:
            raise ArchitectureError(
                f"{name} {self.index} got {hidden.shape[1] - held} tokens beside the prompts, block 0 got "
                f"{forward.length}: this model adds or drops tokens between its blocks, where prompts cannot follow"
            )
        if forward.rows is not None and len(forward.rows) != len(hidden):
            raise UnsupportedOperationError(
                f"{name} works on a batch of {len(hidden)}, and adapter_names names {len(forward.rows)} images; this "
                "model takes images apart or together, so call it with one adapter at a time"
            )
        forward.next_block += 1
        return hidden


class LeaveBlock:
    """After a block: gate the prompts; after the last one that runs pool and take the prompts out."""

    def __init__(self, bank: PromptBank, index: int, asks_interface: bool) -> None:
        self.bank, self.index, self.asks_interface = bank, index, asks_interface

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        forward = running(self.bank)
        if forward is None or self.index < forward.plans[0].first:
            return None
        if self.index > forward.plans[0].last:
            check_skipped(forward, self.index, block)
            return None
        if self.asks_interface and forward.depth and forward.attended != self.index:
            raise ArchitectureError(
                f"{type(block).__name__} {self.index} did not compute its attention through AttentionInterface, where "
                "prompts and temperatures act; load the model with attn_implementation='sdpa' or 'eager'"
            )
        if forward.depth and forward.attended != self.index and self._has_temperature(forward):
            raise ArchitectureError(
                f"{type(block).__name__} {self.index} did not call its query projection, behind which the temperature "
                "acts; use prompts without one: GatedPromptConfig(temperature=False)"
            )
        step = forward.steps[self.index - forward.plans[0].first]
        tokens: torch.Tensor = output[0] if isinstance(output, tuple) else output
        if self.index == forward.plans[0].last:
            LOCAL.beside = len(output) - 1 if isinstance(output, tuple) else None
        entered: torch.Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if step.passive:
            left = self._leave_passive(forward, step, tokens)
        else:
            left = self._leave(forward, step, tokens, entered)
            # transformers 4.57 keeps what the block returned; others keep what it returns with this hook.
            forward.remember(*((tokens, left) if step.stay else (tokens,)))
        if left is tokens:
            return None
        return (left, *output[1:]) if isinstance(output, tuple) else left

    def _has_temperature(self, forward: Forward) -> bool:
        return any(self.bank.inverse_temperature(plan, self.index) is not None for plan in forward.plans)

    def _leave(self, forward: Forward, step: Step, tokens: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """What follows a block that had the prompts among its tokens; `entered` are those before the block."""
        if step.gate is None and step.stay:
            return tokens
        plan = forward.plans[0]
        prefix, prompts, patches = _split(tokens, plan)
        if step.gate is not None:  # paper, Section 4: mixed with the prompts that entered this block
            gate = self.bank.gate(plan, step.gate)
            if forward.rows is not None:
                gate = by_image([self.bank.gate(each, step.gate) for each in forward.plans], forward.rows, 3)
            # A copy: autograd keeps what is mixed, and a view would keep all tokens of the block with it.
            prompts = torch.lerp(entered[:, plan.prompts], prompts.clone(), gate.to(prompts))
        parts = (prefix, prompts, patches) if step.stay else self._pooled(plan, prefix, prompts, patches)
        return torch.cat(parts, dim=1)

    def _leave_passive(self, forward: Forward, step: Step, tokens: torch.Tensor) -> torch.Tensor:
        """What follows a block that saw the prompts as keys and values only; they leave it as they came."""
        plan = forward.plans[0]
        aside, LOCAL.aside = LOCAL.aside, None
        pools = self.index == plan.last and plan.config.pooling is not None
        if not (step.stay or pools):
            return tokens
        prompts = aside if aside is not None else entering_prompts(forward, self.index, tokens, tokens.shape[0])
        prefix, patches = tokens[:, : plan.prompts.start], tokens[:, plan.prompts.start :]
        return torch.cat(self._pooled(plan, prefix, prompts, patches) if pools else (prefix, prompts, patches), dim=1)

    def _pooled(
        self, plan: Plan, prefix: torch.Tensor, prompts: torch.Tensor, patches: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Prefix and patches; at last with the mean that `pooling` names in the place of token 0."""
        pooling = plan.config.pooling
        if pooling is None or self.index < plan.last:
            return prefix, patches
        parts = {"prompts": (prompts,), "patches": (patches,), "prompts_and_patches": (prompts, patches)}[pooling]
        mean = torch.cat(parts, dim=1).mean(dim=1, keepdim=True)
        return mean, prefix[:, 1:], patches


class ScaleQueries:
    """After the query projection of a block whose attention does not ask AttentionInterface: apply the temperature."""

    def __init__(self, bank: PromptBank, index: int, parts: AttentionParts) -> None:
        self.bank, self.index, self.parts = bank, index, parts

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        forward = running(self.bank)
        if forward is None or not forward.plans[0].first <= self.index <= forward.plans[0].last:
            return None
        if module is not self.parts.query_output:
            raise UnsupportedOperationError(
                f"the queries of block {self.index} now come from a {type(self.parts.query_output).__name__} that was "
                "put there after the prompts; the temperature would miss what it adds: inject LoRA first, then prompts"
            )
        forward.attended = self.index
        return scale_queries(forward, self.index, output, self.parts.fused_output)


def scale_queries(forward: Forward, index: int, queries: torch.Tensor, fused: bool = False) -> torch.Tensor:
    """`queries` (B, ...) divided by the block's temperature, which divides the attention logits by it.

    When `fused`, the last axis holds queries, keys and values, and only its first third is scaled.
    """
    bank, rows = forward.bank, forward.rows
    scale = bank.inverse_temperature(forward.plans[0], index)
    if rows is not None:
        scales = [bank.inverse_temperature(plan, index) for plan in forward.plans]
        scale = by_image([queries.new_ones(()) * (1.0 if s is None else s) for s in scales], rows, queries.ndim)
    if scale is None:
        return queries
    if isinstance(scale, torch.Tensor):
        scale = scale.to(queries)
    if fused:
        first, rest = queries.tensor_split((queries.shape[-1] // 3,), dim=-1)
        return torch.cat((first * scale, rest), dim=-1)
    if isinstance(scale, torch.Tensor) and scale.requires_grad and torch.is_grad_enabled():
        return _ScaleKeepingOutput.apply(queries, scale)
    return queries * scale


def entering_prompts(forward: Forward, index: int, like: torch.Tensor, count: int) -> torch.Tensor:
    """The prompts that the bank has for this block, (count, P, D), with dropout per image while training."""
    bank, plan = forward.bank, forward.plans[0]
    if forward.rows is not None:
        prompts = torch.stack([bank.tokens(each, index).to(like.device, like.dtype) for each in forward.plans])
        return prompts[forward.rows]
    prompts = bank.tokens(plan, index).to(like.device, like.dtype).expand(count, -1, -1)
    return F.dropout(prompts, plan.config.prompt_dropout, bank.training)


def by_image(values: list[torch.Tensor], rows: torch.Tensor, ndim: int) -> torch.Tensor:
    """Scalars of the adapters of a mixed batch as one for each image, (B, 1, ...)."""
    return torch.stack(values)[rows].view(-1, *[1] * (ndim - 1))


class RequireInputGradient:
    """After the embeddings, in training: let their output require a gradient.

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
        # With prompts among the tokens of block 0 the gradient reaches its input anyway; elsewhere it costs time.
        plan = forward.plans[0]
        in_block_0 = plan.first == 0 and not forward.steps[0].passive
        if not in_block_0 and not getattr(self.bank.blocks[0], "gradient_checkpointing", False):
            return
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.is_floating_point() and not first.requires_grad:
            first.requires_grad_()


class _ScaleKeepingOutput(torch.autograd.Function):
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
