# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Prompts of low rank: P x D numbers as a product A B of (P, r) and (r, D).

A few prompts are free vectors; many of them lie near a subspace, and the product says so with r (P + D) numbers in
place of P D. Wang et al., *Attention to the Burstiness in Visual Prompt Tuning!* (ICCV 2025,
https://arxiv.org/abs/2506.22908), train prompts in this form.
"""

import torch


def factor_bound(bound: float, rank: int) -> float:
    """The a for which A, B uniform in (-a, a) give a product with the variance of a uniform start in (-bound, bound).

    An entry of A B is a sum of r products, so its variance is r (a^2 / 3)^2; that of the uniform start is bound^2 / 3.
    """
    return float((3 * bound**2 / rank) ** 0.25)


def factorise(tokens: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (S, P, r) and B (S, r, D) whose product is nearest to `tokens` (S, P, D), by truncated SVD.

    The singular values are shared out evenly, as their roots, so that both factors learn at one pace.
    """
    left, values, right = torch.linalg.svd(tokens.double(), full_matrices=False)
    roots = values[:, :rank].sqrt()
    return (left[:, :, :rank] * roots[:, None]).to(tokens.dtype), (roots[:, :, None] * right[:, :rank]).to(
        tokens.dtype
    )
