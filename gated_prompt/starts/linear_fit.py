# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Linear models of features in closed form or by L-BFGS, to the optimum: softmax, one-vs-rest and ridge regression.

Features are standardised, so that one strength of the L2 penalty suits every backbone. The bias is not penalised.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GatedPromptError

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")  # transformers' names
Fit = tuple[Tensor, Tensor]  # weight (K, D) and bias (K,)
MOST_ITERATIONS = 2000


def problem_of(labels: Tensor, outputs: int) -> str:
    """Which of `PROBLEMS` labels (N,) or (N, K) pose to a head of K outputs."""
    if labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()):
        return PROBLEMS[1]
    return PROBLEMS[2] if labels.is_floating_point() or outputs == 1 else PROBLEMS[0]


def fit_linear(
    features: Tensor,
    labels: Tensor,
    outputs: int,
    problem: str,
    l2: float,
    bias: bool = True,
    class_weights: Tensor | None = None,
) -> Fit:
    """Weight (K, D) and bias (K,) that minimise the sum of the losses of all images + l2 / 2 |W|^2.

    The losses are cross entropies, or halves of squared errors. W is the weight on standardised features; the one that
    is returned is for the features as they are. A class without images gets the weight 0 and a bias that never wins.

    Args:
        features: float64 (N, D).
        labels: int (N,) or float (N, K) or (N,), as the problem has them.
        outputs: K.
        problem: one of `PROBLEMS`.
        l2: strength of the penalty, above 0.
        bias: False for a head without one.
        class_weights: (K,), a factor of each class on the losses of its images (of its positives, for several labels).
    """
    labels = _checked(labels, outputs, problem)
    if problem == PROBLEMS[2] and class_weights is not None:
        raise GatedPromptError("class weights are for classes; these labels are numbers")
    center = features.mean(0) if bias else torch.zeros_like(features[0])
    scale = features.std(0, correction=0)
    scale[scale < 1e-6 * scale.max().clamp(min=1e-12)] = 1
    x = (features - center) / scale
    weights = torch.ones(outputs).double() if class_weights is None else class_weights.double()
    fit = {PROBLEMS[0]: _softmax, PROBLEMS[1]: _one_vs_rest, PROBLEMS[2]: _ridge}[problem]
    weight, offset = fit(x, labels, outputs, l2, bias, weights)
    weight = weight / scale
    return weight, offset - weight @ center


def _checked(labels: Tensor, outputs: int, problem: str) -> Tensor:
    if problem == PROBLEMS[0]:
        if labels.ndim != 1 or labels.is_floating_point() or not 0 <= labels.min() <= labels.max() < outputs:
            raise GatedPromptError(
                f"labels of shape {tuple(labels.shape)} and type {labels.dtype} from {labels.min()} to {labels.max()}"
                f"; a head of {outputs} outputs needs classes 0 to {outputs - 1}, one integer for each image"
            )
        return labels
    labels = labels.double().reshape(len(labels), -1)
    if labels.shape[1] != outputs or not bool(torch.isfinite(labels).all()):
        raise GatedPromptError(
            f"labels of shape {tuple(labels.shape)}; a head of {outputs} outputs needs as many finite numbers an image"
        )
    if problem == PROBLEMS[1] and not bool(((labels >= 0) & (labels <= 1)).all()):
        raise GatedPromptError("several labels an image are given as numbers between 0 and 1, one for each class")
    return labels


def _softmax(x: Tensor, labels: Tensor, outputs: int, l2: float, bias: bool, weights: Tensor) -> Fit:
    present, targets = labels.unique(return_inverse=True)
    if len(present) < 2:
        raise GatedPromptError(f"all {len(labels)} images are of class {int(present[0])}; two classes are needed")

    def loss(weight: Tensor, offset: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight, offset), targets, weights[present], reduction="sum")

    some_weight, some_offset = _minimise(loss, len(present), x.shape[1], len(x), l2, bias)
    weight, offset = x.new_zeros(outputs, x.shape[1]), x.new_full((outputs,), float(some_offset.min()))
    weight[present], offset[present] = some_weight, some_offset
    return weight, offset


def _one_vs_rest(x: Tensor, labels: Tensor, outputs: int, l2: float, bias: bool, weights: Tensor) -> Fit:
    positives = labels.sum(0)
    varied = (labels.amin(0) != labels.amax(0)).nonzero()[:, 0]

    def loss(weight: Tensor, offset: Tensor) -> Tensor:
        logits = F.linear(x, weight, offset)
        return F.binary_cross_entropy_with_logits(
            logits, labels[:, varied], pos_weight=weights[varied], reduction="sum"
        )

    weight = x.new_zeros(outputs, x.shape[1])
    offset = torch.log((positives + 0.5) / (len(x) - positives + 0.5)) if bias else x.new_zeros(outputs)
    if len(varied):
        weight[varied], offset[varied] = _minimise(loss, len(varied), x.shape[1], len(x), l2, bias)
    return weight, offset


def _ridge(x: Tensor, labels: Tensor, outputs: int, l2: float, bias: bool, weights: Tensor) -> Fit:
    offset = labels.mean(0) if bias else torch.zeros_like(labels[0])
    gram = x.T @ x + l2 * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ (labels - offset)).T.contiguous(), offset


def _minimise(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: int, width: int, count: int, l2: float, bias: bool
) -> Fit:
    """Weight (K, D) and bias (K,) at the minimum of loss + l2 / 2 |W|^2, which is convex: found from 0."""
    weight = torch.zeros(outputs, width, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(outputs, dtype=torch.float64, requires_grad=bias)
    optimizer = torch.optim.LBFGS(
        [weight, offset] if bias else [weight],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (loss(weight, offset) + l2 / 2 * weight.square().sum()) / count
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), offset.detach()
