# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Put the hooks on a model, and those around its blocks; what happens in the blocks is in `block_hooks.py`.

Hooks are instances of module-level classes that hold the bank and a block index, so that models with hooks can be
copied and pickled.
"""

from typing import Any, TypeGuard

import torch
from torch import nn

from ..errors import UnsupportedOperationError
from .architecture import VisionTransformer
from .attention import AttentionRoute, find_attention_parts
from .bank import PromptBank
from .blocks import EnterBlock, LeaveBlock, ScaleQueries
from .masks import attach_bias_hooks
from .plan import Plan


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
