# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Look at a model without leaving a trace, with random numbers of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..architecture.prefix import undisturbed


@contextmanager
def seeded(root: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Inside, `root` is evaluated without gradients; on leaving, also by an error, all is as it was.

    The global random numbers inside are those of `seed`: they order a shuffling loader and choose the patches that a
    ViT-MAE drops.
    """
    with undisturbed(root):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
