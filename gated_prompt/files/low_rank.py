# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Prompts of low rank: (P, D) as the product of a (P, r) and an (r, D) matrix.

Deprecated, but files with them are read. As in Wang et al., *Attention to the Burstiness in Visual Prompt Tuning!* (https://arxiv.org/abs/2506.22908).
"""

import torch


def factor_bound(bound: float, rank: int) -> float:
    """Return a such that A B, with entries of A and B uniform in (-a, a), has the variance of uniform (-bound, bound).

    An entry of A B is a sum of r products, so its variance is r (a^2 / 3)^2. The target variance is bound^2 / 3.
    """
    return float((3 * bound**2 / rank) ** 0.25)


def factorise(tokens: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (S, P, r) and B (S, r, D) whose product is nearest to `tokens` (S, P, D), by truncated SVD.

    Both factors get the square roots of the singular values, so that they learn at the same pace.
    """
    left, values, right = torch.linalg.svd(tokens.double(), full_matrices=False)
    roots = values[:, :rank].sqrt()
    return (left[:, :, :rank] * roots[:, None]).to(tokens.dtype), (roots[:, :, None] * right[:, :rank]).to(
        tokens.dtype
    )
