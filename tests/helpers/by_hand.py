# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Gated prompts as a loop over a model's own blocks, without the package's hooks, for comparison.

The prompts stay outside of the hidden states: each block is called with them in front, and gives them back. Where they
stand in the row makes no difference to a block that is told no positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@contextmanager
def prompts_by_hand(
    blocks: list[nn.Module],
    queries: list[Callable[[nn.Module], nn.Module]],
    tokens: torch.Tensor,
    gates: torch.Tensor,
    temperatures: torch.Tensor,
    left_out: Sequence[nn.Module] = (),
) -> Iterator[None]:
    """Insert `tokens` (P, D) before `blocks`, gated after each block but the last (paper, Section 4).

    The blocks `left_out` return what they are given.
    """
    prompts: list[torch.Tensor] = []
    handles = [
        query(block).register_forward_hook(lambda _, args, out, tau=tau: _divide(out, tau, tokens.shape[-1]))
        for block, query, tau in zip(blocks, queries, temperatures, strict=True)
    ]

    for module in (m for block in blocks for m in block.modules() if hasattr(m, "relative_position_bias_table")):
        # BEiT's bias (1, H, N, N): none for prompts
        handles.append(module.register_forward_hook(lambda _, args, out: F.pad(out, (len(tokens), 0, len(tokens), 0))))

    divided: list[tuple[nn.Parameter, torch.Tensor]] = []
    for block, tau in zip(blocks, temperatures, strict=True):
        for module in (m for m in block.modules() if getattr(m, "q_bias", None) is not None):
            # transformers' VideoMAE before 5.6 never calls `query`, it takes the weights out of it
            for parameter in (module.query.weight, module.q_bias):
                divided.append((parameter, parameter.data))
                parameter.data = parameter.data / tau

    def wrap(block: nn.Module, index: int) -> None:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                prompts[:] = [tokens.expand(len(hidden), -1, -1)]
            before, count = prompts[0], len(tokens)
            rest = [_widen(value, hidden.shape[1], count) for value in args[1:]]
            named = {name: _widen(value, hidden.shape[1], count) for name, value in kwargs.items()}
            output = plain(torch.cat((before, hidden), dim=1), *rest, **named)
            row = output[0] if isinstance(output, tuple) else output
            if index < len(gates):
                prompts[0] = gates[index] * row[:, :count] + (1 - gates[index]) * before
            return (row[:, count:], *output[1:]) if isinstance(output, tuple) else row[:, count:]

        block.forward = forward  # type: ignore[method-assign]

    forms: list[Any] = []

    def leave_out(block: nn.Module) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden, *forms[-1][1:]) if isinstance(forms[-1], tuple) else hidden

        block.forward = forward  # type: ignore[method-assign]

    for index, block in enumerate(blocks):
        wrap(block, index)
    handles.append(blocks[-1].register_forward_hook(lambda _, args, out: forms.append(out)))
    for block in left_out:
        leave_out(block)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, value in divided:
            parameter.data = value
        for block in (*blocks, *left_out):
            del block.forward


def _divide(queries: torch.Tensor, tau: torch.Tensor, width: int) -> torch.Tensor:
    if queries.shape[-1] != 3 * width:
        return queries / tau
    return torch.cat((queries[..., :width] / tau, queries[..., width:]), dim=-1)


def _widen(value: Any, length: int, count: int) -> Any:
    """A mask (B, 1, N, N) or a pair (cosines, sines), each (N, d), with room for `count` prompts in front.

    None of the prompts is masked or rotated. Other arguments stay as they are.
    """
    if isinstance(value, (tuple, list)) and [getattr(part, "shape", [0])[0] for part in value] == [length, length]:
        return tuple(F.pad(part, (0, 0, count, 0), value=one) for part, one in zip(value, (1.0, 0.0), strict=True))
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.shape[-2:] != (length, length):
        return value
    return F.pad(value, (count, 0, count, 0), value=value.dtype == torch.bool)
