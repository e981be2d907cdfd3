# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What happens to the tokens on their way through the blocks.

                   block k                 blocks k .. L-2                    block L-1
    [prefix, patches] -> [prefix, PROMPTS, patches] -> gate -> ... -> [prefix, patches]

Hooks are instances of module-level classes that hold the bank and a block index, so that models with hooks can be
copied and pickled. The prompts travel inside the hidden states, which keeps activation checkpointing correct.
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from .architecture import VisionTransformer
from .attention import AttentionRoute, find_attention_parts
from .bank import Plan, PromptBank
from .errors import ArchitectureError, UnsupportedOperationError
from .masks import attach_bias_hooks, widen_argument

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def attach_hooks(bank: PromptBank, vit: VisionTransformer) -> None:
    """Register all hooks; their handles are kept in `bank.handles`."""
    handles = bank.handles
    handles.append(vit.embeddings.register_forward_hook(RequireInputGradient(bank, vit.blocks)))
    for index, (block, query) in enumerate(zip(vit.blocks, vit.queries, strict=True)):
        parts = find_attention_parts(block, query)
        if parts is not None:
            bank.routes[index] = AttentionRoute(bank, index, parts)
            handles.append(bank.routes[index])
        handles.append(block.register_forward_pre_hook(EnterBlock(bank, index), with_kwargs=True))
        # First among the block's hooks: transformers 5 captures hidden states in a hook of its own.
        handles.append(block.register_forward_hook(LeaveBlock(bank, index), with_kwargs=True, prepend=True))
        handles.append(query.module.register_forward_hook(ScaleQueries(bank, index, query.fused)))
    for ancestor in vit.ancestors:
        handles.append(ancestor.register_forward_pre_hook(NoticeAttentions(bank), with_kwargs=True))
        handles.append(ancestor.register_forward_hook(StripHiddenStates(bank)))
        if hasattr(ancestor, "forward_intermediates"):
            handles.append(RefuseIntermediates(bank, ancestor))
    attach_bias_hooks(bank, vit)


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
        gate = self.bank.gate(plan, self.index)
        if gate is not None and torch.is_grad_enabled():
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
            prompts = torch.lerp(entered[:, plan.prompts], prompts, gate.to(prompts.dtype))
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
        scale = None if plan is None else self.bank.inverse_temperature(plan, self.index)
        if scale is None:
            return None
        if isinstance(scale, torch.Tensor):
            scale = scale.to(output.dtype)
        if not self.fused:
            return output * scale
        width = output.shape[-1] // 3
        scales = output.new_ones(3, width)
        return output * torch.cat((scales[:1] * scale, scales[1:])).flatten()


class NoticeAttentions:
    """Before a module that holds the blocks: whether attention maps are asked for, which have rows for the prompts."""

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked = kwargs.get("output_attentions")
        if asked is None:
            asked = getattr(getattr(module, "config", None), "output_attentions", False)
        self.bank.attentions_wanted = self.bank.attentions_wanted or bool(asked)


class StripHiddenStates:
    """After a module that holds the blocks: take the prompts out of the hidden states that it reports."""

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        plan = self.bank.plan
        self.bank.attentions_wanted = False
        if plan is None:
            return None
        if isinstance(output, tuple):  # return_dict=False
            return tuple(self._strip_all(plan, part) if _is_states(part) else part for part in output)
        states: Any = getattr(output, "hidden_states", None)
        if _is_states(states):
            output.hidden_states = self._strip_all(plan, states)
        return output

    def _strip_all(self, plan: Plan, states: tuple[Any, ...]) -> tuple[Any, ...]:
        prompted = self.bank.sequence_length + plan.config.num_virtual_tokens
        return tuple(
            torch.cat((s[:, : plan.prompts.start], s[:, plan.prompts.stop :]), dim=1) if s.shape[1] == prompted else s
            for s in states
        )


class RefuseIntermediates:
    """In the place of timm's `forward_intermediates`, which cuts what the blocks return into maps, prompts included.

    It calls no hook, so nothing can take the prompts out first; where the numbers of tokens happen to divide, the
    maps would be wrong without an error. An instance attribute that shadows the method, removed like a hook.
    """

    def __init__(self, bank: PromptBank, module: nn.Module) -> None:
        self.bank, self.module = bank, module
        module.forward_intermediates = self  # type: ignore[assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.bank.plan is not None:
            raise UnsupportedOperationError(
                f"forward_intermediates of {type(self.module).__name__} (in transformers: output_hidden_states=True) "
                "would return maps with prompts in them; read the blocks with forward hooks, or use disable_adapter()"
            )
        kind: Any = type(self.module)
        return kind.forward_intermediates(self.module, *args, **kwargs)

    def remove(self) -> None:
        """Give the module its own method back."""
        del self.module.forward_intermediates


class RequireInputGradient:
    """After the embeddings, in training: let their output require a gradient.

    Reentrant activation checkpointing passes gradients only to inputs that require one. transformers before 5.10
    checkpoints a block together with its hooks, so prompts inserted there would silently not be trained.
    """

    def __init__(self, bank: PromptBank, blocks: list[nn.Module]) -> None:
        self.bank, self.blocks = bank, blocks

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        plan = self.bank.plan
        if plan is None or not self.bank.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        # With prompts at block 0 the gradient reaches its input anyway; further up it would cost the blocks below.
        if plan.config.insert_at > 0 and not getattr(self.blocks[0], "gradient_checkpointing", False):
            return
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and first.is_floating_point() and not first.requires_grad:
            first.requires_grad_()


def _is_states(part: Any) -> TypeGuard[tuple[torch.Tensor, ...]]:
    """Whether this output is a tuple of hidden states, not of attentions nor the nested output of a text tower."""
    return isinstance(part, tuple) and all(isinstance(s, torch.Tensor) and s.ndim == 3 for s in part)


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
