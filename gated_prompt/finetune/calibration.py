# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Confidence that means what it says: one temperature that divides the logits, fitted to scores of unseen images.

Guo et al., 2017 (arXiv 1706.04599). The targets are Platt's (1999), (N + 1) / (N + 2) for what N images show, so that
a few images that are all classified correctly do not promise certainty.
"""

import torch
from torch import Tensor

from .image_set import MULTI_LABEL, REGRESSION, SINGLE_LABEL

LEAST, MOST = 0.01, 100.0
HALVINGS = 50


def fit_temperature(scores: Tensor, targets: Tensor, problem: str) -> float:
    """The temperature at which the likelihood of the targets is largest, within `LEAST` and `MOST`. Numbers have 1.

    Args:
        scores: logits (N, K) of images that the model was not fitted to.
        targets: classes int64 (N,), or zeros and ones (N, K) for several labels.
        problem: "single_label", "multi_label" or "regression".
    """
    if problem == REGRESSION or (problem == SINGLE_LABEL and scores.shape[1] < 2):
        return 1.0
    logits, rest = scores.double(), 1 / (len(scores) + 2)
    if problem == MULTI_LABEL:
        wanted = targets.double().clamp(rest, 1 - rest)
    else:
        wanted = torch.full_like(logits, rest / (logits.shape[1] - 1))
        wanted.scatter_(1, targets[:, None], 1 - rest)
    # The loss is convex in 1 / T: halve the interval, in logarithms, in which its slope changes sign.
    low, high = LEAST, MOST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        found = confidence(logits, middle, problem)
        if float(((found - wanted) * logits).sum()) > 0:  # too confident
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5


def confidence(scores: Tensor, temperature: float, problem: str) -> Tensor:
    """Probabilities (N, K) of logits at a temperature."""
    return (scores / temperature).softmax(-1) if problem == SINGLE_LABEL else (scores / temperature).sigmoid()
