# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Run the blocks of a model by hand with zero-start prompts, by the equation in `tuner/zero_start.py`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..architecture import VisionTransformer
from ..architecture.adapter import Adapter
from ..tuner.attention import AttentionRoute
from ..tuner.bank import PromptBank


@contextmanager
def reading_prompts(vit: VisionTransformer, bank: PromptBank, adapter: Adapter, flip: bool) -> Iterator[None]:
    """Add what each block reads from its prompts to its attention, while blocks are called by hand."""
    with ExitStack() as stack:
        for index in adapter.blocks:
            stack.callback(_ReadByHand(vit, bank, adapter, index, flip).remove)
        yield


class _ReadByHand(AttentionRoute):
    """Adds tanh(a) softmax(q k_p^T / sqrt(d)) v_p to what the base's attention function returns."""

    def __init__(self, vit: VisionTransformer, bank: PromptBank, adapter: Adapter, index: int, flip: bool) -> None:
        parts = vit.attentions[index]
        route: Any = parts.attention.config
        self.own, self.instead = parts.function(route.config), self.read
        tokens = bank.tokens(adapter, index)
        self.prompts = tokens.flip(0) if flip else tokens
        self.gates = torch.tanh(bank.head_gates(adapter, index))
        super().__init__(bank, index, parts)

    def read(
        self, module: nn.Module, query: torch.Tensor, *others: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend with queries (B, H, N, d). Returns (B, N, H, d). `others`: what transformers passes."""
        output, weights = self.own(module, query, *others, **kwargs)
        block, attention, width = self.parts.block, self.parts.attention, query.shape[-1]
        normed = getattr(block, str(self.parts.norm))(self.prompts.to(query))
        keys = getattr(attention, str(self.parts.key))(normed).unflatten(-1, (-1, width))  # (P, H, d)
        values = getattr(attention, str(self.parts.value))(normed).unflatten(-1, (-1, width))
        logits = torch.einsum("bhnd,phd->bhnp", query, keys) * (kwargs.get("scaling") or width**-0.5)
        read = torch.einsum("bhnp,phd->bnhd", logits.softmax(-1), values)
        return output + self.gates.to(query)[:, None] * read, weights
