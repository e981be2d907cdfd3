# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Zero start: the tokens of a block read its prompts in a softmax of their own, and add little of it at first.

With queries q and keys and values k, v of the block, those of its prompts k_p, v_p, and one a for each head, the
output of a head is softmax(q k^T / sqrt(d)) v + tanh(a) softmax(q k_p^T / sqrt(d)) v_p. With a = 0 it is exactly that
of the base. No prompt passes queries, output projection and MLP. As in LLaMA-Adapter's zero-init attention
(arXiv 2303.16199) and CVPT (ICCV 2025). A temperature divides both logits.
"""

import torch
import torch.nn.functional as F

from ..errors import ArchitectureError
from .forward import Forward


def add_prompts(
    forward: Forward,
    index: int,
    output: torch.Tensor,
    query: torch.Tensor,
    keys_and_values: tuple[torch.Tensor, torch.Tensor],
    scaling: float | None,
    eager: bool,
) -> torch.Tensor:
    """Add what the queries (B, H, N, d) read from the prompts of this block to `output` (B, N, H, d).

    `keys_and_values` (B or 1, H, P, d) are those of the prompts. `scaling` (None: 1 / sqrt(d)) multiplies the logits.
    If `eager`, every step is an operation of its own, as in an eager model: these can be differentiated twice.

    Raises:
        ArchitectureError: the block has another number of heads than the adapter has gates for.
    """
    keys, values = keys_and_values
    gates = head_gates(forward, index)
    if not query.shape[1] == keys.shape[1] == gates.shape[-1] == output.shape[2]:
        raise ArchitectureError(
            f"block {index} attends with {query.shape[1]} heads to keys with {keys.shape[1]}, but the adapter has "
            f"zero-start gates for {gates.shape[-1]}. Use deep=True without zero_start."
        )
    values = values * gates[:, :, None, None].to(values)  # rather than what is read, which is larger
    keys, values = (part.to(query.dtype).expand(query.shape[0], -1, -1, -1) for part in (keys, values))
    if eager:
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        read = (query @ keys.transpose(2, 3) * factor).softmax(-1) @ values
    else:
        read = F.scaled_dot_product_attention(query, keys, values, scale=scaling)
    return output + read.transpose(1, 2)


def head_gates(forward: Forward, index: int) -> torch.Tensor:
    """Return tanh(a) of this block, (1, H), or of each image of a mixed batch, (B, H)."""
    bank = forward.bank
    if forward.rows is None:
        return torch.tanh(bank.head_gates(forward.adapters[0], index))[None]
    return forward.by_image(lambda each: torch.tanh(bank.head_gates(each, index)))
