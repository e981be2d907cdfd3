# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Prompts that start as nothing: read by a softmax of their own, through a block's frozen keys and values.

In every block the image tokens attend to P prompts apart from the block's own attention; what they read is added
times tanh(a), one a for each head, 0 at the start. The adapted model then begins as the base, bit for bit. As in
LLaMA-Adapter's zero-init attention and CVPT (ICCV 2025).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class ZeroStartPrompts(nn.Module):
    """The prompts of one block and the hooks that add them to its attention.

    Args:
        block: A block of transformers' DINOv2; its modules are used as they are.
        count: P.
        bound: The prompts start uniform in (-bound, bound).
    """

    def __init__(self, block: nn.Module, count: int, bound: float) -> None:
        super().__init__()
        attention: Any = block.attention
        self.tokens = nn.Parameter(torch.empty(count, attention.q_proj.in_features).uniform_(-bound, bound))
        self.gate = nn.Parameter(torch.zeros(attention.num_attention_heads))
        self._frozen: Any = (block.norm1, attention.k_proj, attention.v_proj)  # a tuple: no children of this module
        self._queries: torch.Tensor | None = None
        attention.q_proj.register_forward_hook(self._see_queries)
        attention.o_proj.register_forward_pre_hook(self._add)

    def _see_queries(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self._queries = output

    def _add(self, module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        if self._queries is None:
            raise RuntimeError("the output projection ran before the queries")
        queries, self._queries = self._queries, None
        norm, key, value = self._frozen
        prompts, heads = norm(self.tokens), len(self.gate)
        keys, values = (part(prompts).unflatten(-1, (heads, -1)).transpose(0, 1) for part in (key, value))
        read = F.scaled_dot_product_attention(
            queries.unflatten(-1, (heads, -1)).transpose(1, 2),
            keys.expand(len(queries), -1, -1, -1),
            values.expand(len(queries), -1, -1, -1),
        )
        read = read * torch.tanh(self.gate)[:, None, None].to(read.dtype)
        return (args[0] + read.transpose(1, 2).flatten(2),)


def add_zero_start(model: nn.Module, blocks: nn.ModuleList, count: int, bound: float) -> nn.ModuleList:
    """Freeze `model` and give it prompts in each of `blocks`; they become its child `zero_prompts`."""
    model.requires_grad_(False)
    model.zero_prompts = nn.ModuleList(ZeroStartPrompts(block, count, bound) for block in blocks)
    return model.zero_prompts
