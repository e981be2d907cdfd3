# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Prune an adapter: skip what closed gates discard, or measure beforehand what that would save and cost.

A closed gate discards the prompts that its block returns. A pruned block is passive in eval mode: its prompts are keys
and values only (see `architecture/adapter.py`).
"""

from typing import NamedTuple

import torch
from torch import nn

from ..architecture.adapter import Adapter
from ..errors import GatedPromptError
from ..tuner.bank import PromptBank
from ..tuner.request import Request, requested
from .readouts import find_adapter


class Pruning(NamedTuple):
    """The effect of pruning, as `pruning` returns it.

    Attributes:
        blocks: the blocks that would be passive.
        change: the largest change of a logit, absolute, over all images and classes.
        scale: the largest logit without pruning, absolute, over all images and classes.
    """

    blocks: list[int]
    change: float
    scale: float


def prune(model: nn.Module, gate_tolerance: float | None, adapter_name: str | None = None) -> list[int]:
    """Make blocks with closed gates passive in eval mode. Training still uses every gate.

    The gates are read once, at this call. Call it again after you train them or load others.

    Args:
        model: a model with gated prompts.
        gate_tolerance: gates up to this value count as closed (with `hard_gates`, those that are 0 in eval mode).
            None undoes the pruning.
        adapter_name: None means the active adapter.

    Returns:
        The blocks that are passive in eval mode, including the last block, pruned or not, if no pooling reads the
        prompts.

    Raises:
        GatedPromptError: the model has no gated prompts or no adapter of that name, or the tolerance is not in [0, 1).

    Example:
        ```python
        gated_prompt.prune(model.eval(), gate_tolerance=0.01)  # [0, 1, 2, 3]
        gated_prompt.prune(model, None)  # undo
        ```
    """
    bank, adapter = find_adapter(model, adapter_name)
    pruned = _pruned(bank, adapter, gate_tolerance)
    bank.adapters[adapter.name] = pruned
    return pruned.passive_blocks


@torch.no_grad()
def pruning(
    model: nn.Module, pixel_values: torch.Tensor, gate_tolerance: float, adapter_name: str | None = None
) -> Pruning:
    """Measure on images what `prune` with this tolerance would save and cost, without changing the model.

    Args:
        model: a model with gated prompts, in eval mode, that returns `logits`.
        pixel_values: (B, 3, H, W), as the image processor returns them.
        gate_tolerance: gates up to this value count as closed.
        adapter_name: None means the active adapter.

    Raises:
        GatedPromptError: as for `prune`, or the model is in training mode or returns no logits.

    Example:
        ```python
        effect = gated_prompt.pruning(model.eval(), pixel_values, gate_tolerance=0.01)
        print(f"blocks {effect.blocks} would be passive, and logits would change by at most {effect.change:.1e}")
        ```
    """
    bank, adapter = find_adapter(model, adapter_name)
    if model.training:
        raise GatedPromptError("pruning acts in eval mode only. Call model.eval() first.")
    pruned, results = _pruned(bank, adapter, gate_tolerance), []
    for each in (_pruned(bank, adapter, None), pruned):
        with requested(Request(bank, adapters=(each,))):
            results.append(getattr(model(pixel_values=pixel_values), "logits", None))
    exact, cheaper = results
    if exact is None or cheaper is None:
        raise GatedPromptError(f"{type(model).__name__} returned no logits. Give a model with a head.")
    change = float((cheaper - exact).abs().max())
    return Pruning(pruned.passive_blocks, change, float(exact.abs().max()))


def _pruned(bank: PromptBank, adapter: Adapter, gate_tolerance: float | None) -> Adapter:
    if gate_tolerance is None:
        return adapter.pruned(())
    if not 0 <= gate_tolerance < 1:
        raise GatedPromptError(f"gate_tolerance is {gate_tolerance}. Expected a gate value in [0, 1).")
    if not adapter.gate_rows:
        return adapter.pruned(())
    logits = bank.gated_prompt_gate_logits[adapter.name].detach().cpu()
    values = ((logits > 0).float() if adapter.config.hard_gates else torch.sigmoid(logits)).tolist()
    closed = {block for block, row in adapter.gate_rows.items() if values[row] <= gate_tolerance}
    return adapter.pruned(closed & bank.can_be_passive)
