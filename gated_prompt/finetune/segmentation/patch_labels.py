# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Which share of each patch belongs to which class."""

import torch
import torch.nn.functional as F
from torch import Tensor


def class_shares(labels: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """Shares (h, w, K) of the area of each patch. Less than 1 in all where pixels are ignored.

    `labels` (H, W) may have any size: its pixels are spread evenly over the h x w patches.
    """
    shares = torch.zeros(num_classes, *grid)
    for label in labels.unique().tolist():
        if label < num_classes:
            inside = (labels == label).float()[None, None]
            shares[label] = F.interpolate(inside, grid, mode="area")[0, 0]
    return shares.permute(1, 2, 0)
