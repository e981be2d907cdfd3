# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What `gate_tolerance` would save and cost."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from ..errors import GatedPromptError
from ..tuner.bank import PromptBank
from ..tuner.plan import Plan
from .readouts import find_adapter


class Pruning(NamedTuple):
    """`blocks`: where the prompts are keys and values only; `change`: largest change of a logit; `scale`: largest
    logit without tolerance, both in absolute value, over all images and classes."""

    blocks: list[int]
    change: float
    scale: float


@torch.no_grad()
def pruning(model: nn.Module, pixel_values: torch.Tensor, gate_tolerance: float) -> Pruning:
    """Compare the active adapter with and without a tolerance on some images.

    Nothing of the model is changed. Set `model.peft_config[name].gate_tolerance` to make a tolerance last; it acts in
    eval mode alone.

    Args:
        model: a model with gated prompts, in eval mode, whose output has `logits`.
        pixel_values: images as the model takes them, (B, 3, H, W).
        gate_tolerance: gates up to this value are taken as closed.

    Raises:
        GatedPromptError: the model carries no gated prompts, is in training mode or returns no logits, or the
            tolerance is not in [0, 1).
    """
    bank, plan = find_adapter(model, None)
    if model.training:
        raise GatedPromptError("gate_tolerance acts in eval mode only; call model.eval() first")
    if not 0 <= gate_tolerance < 1:
        raise GatedPromptError(f"gate_tolerance is {gate_tolerance}; it is a gate value and must lie in [0, 1)")
    results = []
    for tolerance in (0.0, gate_tolerance):
        with _tolerance(bank, plan, tolerance):
            logits = getattr(model(pixel_values=pixel_values), "logits", None)
            results.append((logits, sorted(bank.passage.passive)))
    (exact, _), (pruned, blocks) = results
    if exact is None or pruned is None:
        raise GatedPromptError(f"{type(model).__name__} returned no logits; compare a model with a head")
    return Pruning(blocks, float((pruned - exact).abs().max()), float(exact.abs().max()))


@contextmanager
def _tolerance(bank: PromptBank, plan: Plan, tolerance: float) -> Iterator[None]:
    config = copy.copy(plan.config)
    config.gate_tolerance = tolerance
    bank.plans[plan.name] = dataclasses.replace(plan, config=config)
    try:
        yield
    finally:
        bank.plans[plan.name] = plan
