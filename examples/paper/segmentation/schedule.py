# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""SETR's polynomial learning-rate decay, as in mmsegmentation."""

from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR


def poly_schedule(optimizer: torch.optim.Optimizer, steps: int, min_rate: float, power: float = 0.9) -> LambdaLR:
    """Decay each group's rate from its initial r to `min_rate`: (r - min_rate) (1 - t/T) ** power + min_rate."""

    def factor(first: float, step: int) -> float:
        return ((first - min_rate) * (1 - min(step, steps) / steps) ** power + min_rate) / first

    return LambdaLR(optimizer, [partial(factor, float(group["lr"])) for group in optimizer.param_groups])
