# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Look at a model without leaving a trace: in eval mode, with random numbers of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(root: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Inside, `root` is in eval mode and no gradients are kept; on leaving, also by an error, all is as it was.

    The global random numbers inside are those of `seed`: they order a shuffling loader and choose the patches that a
    ViT-MAE drops.
    """
    modes = [(module, module.training) for module in root.modules()]
    # fork_rng saves no generators but the CPU's and those that are named
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        root.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
