# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Zero-start prompts without the package's hooks, for comparison: seen from below, where torch computes attention."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


class _AddToAttention(TorchFunctionMode):
    """Adds tanh(a) softmax(q k_p^T scale / tau) v_p to the attention of the block that runs, and divides by tau."""

    def __init__(self, read: Callable[[torch.Tensor, float], torch.Tensor], tau: Callable[[], float]) -> None:
        super().__init__()
        self.read, self.tau = read, tau

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.tau():
            return func(*args, **kwargs)
        query = args[0] / self.tau()
        scale = kwargs.get("scale") or query.shape[-1] ** -0.5
        return func(query, *args[1:], **kwargs) + self.read(query, scale)


@contextmanager
def zero_start_by_hand(
    blocks: list[nn.Module], tokens: torch.Tensor, gates: torch.Tensor, temperatures: torch.Tensor
) -> Iterator[None]:
    """Let `blocks` read `tokens` (K, P, D) with the gates a (K, H); their attention must be torch's own (sdpa)."""
    running: list[int] = []

    def tau() -> float:
        return float(temperatures[running[-1]]) if running else 0.0

    def read(query: torch.Tensor, scale: float) -> torch.Tensor:
        index, width = running[-1], query.shape[-1]
        named = dict(blocks[index].named_modules())
        norm = next(module for module in named.values() if isinstance(module, nn.LayerNorm))
        keys, values = (
            next(module for name, module in named.items() if name.rpartition(".")[2] in names)(norm(tokens[index]))
            for names in (("k_proj", "key"), ("v_proj", "value"))
        )
        heads = []
        for head in range(query.shape[1]):
            part = slice(head * width, (head + 1) * width)
            weights = (query[:, head] @ keys[:, part].T * scale).softmax(-1)
            heads.append(torch.tanh(gates[index, head]) * (weights @ values[:, part]))
        return torch.stack(heads, dim=1)

    def leave(*_: Any) -> None:
        running.pop()

    handles = []
    for index, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(lambda _, args, index=index: running.append(index)))
        handles.append(block.register_forward_hook(leave))
    try:
        with _AddToAttention(read, tau):
            yield
    finally:
        for handle in handles:
            handle.remove()
