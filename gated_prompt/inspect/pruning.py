# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Skip what closed gates discard: prune an adapter, or find out beforehand what that would save and cost.

Behind a closed gate the prompts leave a block as they came, so nothing reads what the block made of them. Pruned, such
a block is passive in eval mode: its prompts are keys and values only (see `tuner/adapter.py`).
"""

from typing import NamedTuple

import torch
from torch import nn

from ..errors import GatedPromptError
from ..tuner.adapter import Adapter
from ..tuner.bank import PromptBank
from ..tuner.forward import Request, requested
from .readouts import find_adapter


class Pruning(NamedTuple):
    """What pruning would do.

    `blocks`: those in which the prompts would be keys and values only; `change`: the largest change of a logit;
    `scale`: the largest logit without pruning, both in absolute value, over all images and classes.
    """

    blocks: list[int]
    change: float
    scale: float


def prune(model: nn.Module, gate_tolerance: float | None, adapter_name: str | None = None) -> list[int]:
    """Let eval mode skip the work of blocks whose gates are closed; training keeps using every gate.

    The gates are looked at now, once: call it again after they were trained or loaded anew.

    Args:
        model: a model with gated prompts.
        gate_tolerance: gates up to this value count as closed (with `hard_gates`, those that are shut in eval mode);
            None takes the pruning back.
        adapter_name: None: the active adapter.

    Returns:
        The blocks in which the prompts are keys and values only in eval mode; the last is one of them where no
        pooling reads the prompts, pruned or not.

    Raises:
        GatedPromptError: the model carries no gated prompts, no adapter of that name, or the tolerance is not in
            [0, 1).
    """
    bank, adapter = find_adapter(model, adapter_name)
    pruned = _pruned(bank, adapter, gate_tolerance)
    bank.adapters[adapter.name] = pruned
    return pruned.passive_blocks


@torch.no_grad()
def pruning(
    model: nn.Module, pixel_values: torch.Tensor, gate_tolerance: float, adapter_name: str | None = None
) -> Pruning:
    """What `prune` with this tolerance would save and cost, on some images; the model stays as it is.

    Args:
        model: a model with gated prompts, in eval mode, whose output has `logits`.
        pixel_values: images as the model takes them, (B, 3, H, W).
        gate_tolerance: gates up to this value count as closed.
        adapter_name: None: the active adapter.

    Raises:
        GatedPromptError: as for `prune`; or the model is in training mode or returns no logits.
    """
    bank, adapter = find_adapter(model, adapter_name)
    if model.training:
        raise GatedPromptError("pruning acts in eval mode only; call model.eval() first")
    pruned, results = _pruned(bank, adapter, gate_tolerance), []
    for each in (_pruned(bank, adapter, None), pruned):
        with requested(Request(bank, adapters=(each,))):
            results.append(getattr(model(pixel_values=pixel_values), "logits", None))
    exact, cheaper = results
    if exact is None or cheaper is None:
        raise GatedPromptError(f"{type(model).__name__} returned no logits; compare a model with a head")
    change = float((cheaper - exact).abs().max())
    return Pruning(pruned.passive_blocks, change, float(exact.abs().max()))


def _pruned(bank: PromptBank, adapter: Adapter, gate_tolerance: float | None) -> Adapter:
    if gate_tolerance is None:
        return adapter.pruned(())
    if not 0 <= gate_tolerance < 1:
        raise GatedPromptError(f"gate_tolerance is {gate_tolerance}; it is a gate value and must lie in [0, 1)")
    if not adapter.gate_rows:
        return adapter.pruned(())
    logits = bank.gated_prompt_gate_logits[adapter.name].detach().cpu()
    values = ((logits > 0).float() if adapter.config.hard_gates else torch.sigmoid(logits)).tolist()
    closed = {block for block, row in adapter.gate_rows.items() if values[row] <= gate_tolerance}
    return adapter.pruned(closed & bank.can_be_passive)
