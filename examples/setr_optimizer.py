# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""How SETR is trained in mmsegmentation: heads ten times as fast as the rest, rates that fall as a power of time."""

from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

HEADS = {"decode_head", "auxiliary_head"}


def parameter_groups(model: torch.nn.Module, rate: float, head_rate: float) -> list[dict[str, Any]]:
    """Trained parameters with their first rates: those of the heads apart from all others (prompts, backbone)."""
    heads: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (heads if HEADS & set(name.split(".")) else others).append(parameter)
    groups = [{"params": others, "lr": rate}, {"params": heads, "lr": head_rate}]
    return [group for group in groups if group["params"]]


def poly_schedule(optimizer: torch.optim.Optimizer, steps: int, min_rate: float, power: float = 0.9) -> LambdaLR:
    """Each group's rate falls from its first value r to `min_rate`: (r - min_rate) (1 - t/T) ** power + min_rate."""

    def factor(first: float, step: int) -> float:
        return ((first - min_rate) * (1 - min(step, steps) / steps) ** power + min_rate) / first

    return LambdaLR(optimizer, [partial(factor, float(group["lr"])) for group in optimizer.param_groups])
