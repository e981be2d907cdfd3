# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Linear probes along a path of penalties, and nearest neighbours."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Fit = tuple[Tensor, Tensor]  # weight (K, F) and bias (K,), on features as they are
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C: 1 / (L2 penalty) of the sum of the losses
NEIGHBOURS = (1, 3, 5, 10, 20)
NEVER = -1e4  # bias of a class without images


def fit_path(x: Tensor, y: Tensor, num_classes: int, strengths: Sequence[float] = STRENGTHS) -> list[Fit]:
    """The logistic regression on standardised features (N, F) for each strength, from the strongest penalty on."""
    center, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    z = (x - center) / scale
    left, sizes, right = torch.linalg.svd(z, full_matrices=False) if len(z) < z.shape[1] else (z, None, None)
    inputs = left if sizes is None else left * sizes  # an L2 penalty does not see the rotation
    present, targets = y.unique(return_inverse=True)
    weight = torch.zeros(len(present), inputs.shape[1], requires_grad=True)
    bias = torch.zeros(len(present), requires_grad=True)
    fits = []
    for strength in strengths:
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=60, tolerance_grad=1e-4, tolerance_change=1e-6, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer, strength: float = strength) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(inputs, weight, bias), targets)
            loss = loss + weight.square().sum() / (2 * strength * len(inputs))
            loss.backward()
            return loss

        optimizer.step(closure)
        found = weight.detach() if right is None else weight.detach() @ right
        all_weights = x.new_zeros(num_classes, x.shape[1])
        all_biases = x.new_full((num_classes,), NEVER)
        all_weights[present] = found / scale
        all_biases[present] = bias.detach() - all_weights[present] @ center
        fits.append((all_weights, all_biases))
    return fits


def hits(fit: Fit, x: Tensor, y: Tensor) -> Tensor:
    """Which images (N,) a probe classifies correctly."""
    return F.linear(x, *fit).argmax(1) == y


def nearest_hits(bank: Tensor, labels: Tensor, x: Tensor, y: Tensor, neighbours: int) -> Tensor:
    """Which images k nearest neighbours by cosine classify correctly, each vote weighted by its similarity."""
    similar, index = (F.normalize(x, dim=1) @ F.normalize(bank, dim=1).T).topk(neighbours, dim=1)
    votes = torch.zeros(len(x), 1 + int(labels.max())).scatter_add_(1, labels[index], similar)
    return votes.argmax(1) == y
