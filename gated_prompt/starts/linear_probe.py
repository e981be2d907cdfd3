# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The linear probe: softmax, one-vs-rest and ridge regression on standardised features, for all folds at once.

Features are standardised, so that one set of strengths of the L2 penalty suits every backbone and block, and rotated
to their principal axes: nothing changes but the speed. The bias is not penalised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GatedPromptError
from .lbfgs import Objective, minimise

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")  # transformers' names
STRENGTHS = (1000.0, 100.0, 10.0, 1.0)  # of the L2 penalty on a sum of losses: 1 / C in scikit-learn
QUICK, EXACT = 1e-4, 1e-13  # tolerances: of probes that are compared, and of a head that is fitted
Fit = tuple[Tensor, Tensor]  # weight (K, F) and bias (K,), or with folds in front (T, K, F) and (T, K)


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
    """Weight (K, F) and bias (K,) in float64 at the minimum of the sum of the losses of all images + l2 / 2 |W|^2.

    The losses are cross entropies, or halves of squared errors. W is the weight on standardised features. The one that
    is returned is for the features as they are. A class without images gets the weight 0 and a bias that never wins.

    Args:
        features: (N, F).
        labels: int (N,) or float (N, K) or (N,), as the problem has them.
        outputs: K.
        problem: one of `PROBLEMS`.
        l2: strength of the penalty, above 0.
        bias: False for a head without one.
        class_weights: (K,), a factor of each class on the losses of its images (of its positives, for several labels).

    Raises:
        GatedPromptError: the labels do not fit the problem, or are all of one class.
    """
    (fit,) = fit_path(
        features.double(), labels, outputs, problem, (l2,), bias=bias, class_weights=class_weights, tolerance=EXACT
    )
    return fit[0][0], fit[1][0]


def fit_path(
    features: Tensor,
    labels: Tensor,
    outputs: int,
    problem: str,
    strengths: Sequence[float] = STRENGTHS,
    *,
    used: Tensor | None = None,
    bias: bool = True,
    class_weights: Tensor | None = None,
    tolerance: float = QUICK,
) -> Iterator[Fit]:
    """Weights (T, K, F) and biases (T, K) for each strength in turn, each fit starting from the one before.

    Args:
        features: (N, F). The fits are computed in their precision and on their device.
        used: bool (T, N), the images that each of T fits sees. None means one fit to all. The features are
            standardised by the mean and spread of all N, which no label enters.
        tolerance: of `lbfgs.minimise`.

    The others are those of `fit_linear`, as are the errors.
    """
    labels = _checked(labels.to(features.device), outputs, problem, features.dtype)
    if problem == PROBLEMS[2] and class_weights is not None:
        raise GatedPromptError("class weights are for classes. These labels are numbers.")
    if used is None:
        used = torch.ones(1, len(features), dtype=torch.bool)
    used, axes = used.to(features.device), Axes.of(features, bias)
    if problem == PROBLEMS[2]:
        fits = _ridge(axes.inputs, labels, used, strengths, bias)
    else:
        weights = torch.ones(outputs) if class_weights is None else class_weights
        kind = _Softmax if problem == PROBLEMS[0] else _OneVsRest
        fits = _descend(kind(labels, used, weights.to(features)), axes, strengths, bias, tolerance)
    for weight, offset in fits:
        own = weight @ axes.axes / axes.scale
        yield own, offset - own @ axes.center


def _checked(labels: Tensor, outputs: int, problem: str, dtype: torch.dtype) -> Tensor:
    if problem == PROBLEMS[0]:
        if labels.ndim != 1 or labels.is_floating_point() or not 0 <= labels.min() <= labels.max() < outputs:
            raise GatedPromptError(
                f"the labels have shape {tuple(labels.shape)}, type {labels.dtype} and values from {labels.min()} to "
                f"{labels.max()}. A head of {outputs} outputs needs classes 0 to {outputs - 1}, one integer per image."
            )
        if bool((labels == labels[0]).all()):
            raise GatedPromptError(f"all {len(labels)} images are of class {int(labels[0])}. Expected two classes.")
        return labels.long()
    labels = labels.to(dtype).reshape(len(labels), -1)
    if labels.shape[1] != outputs or not bool(torch.isfinite(labels).all()):
        raise GatedPromptError(
            f"the labels have shape {tuple(labels.shape)}. A head of {outputs} outputs needs as many finite numbers "
            "per image."
        )
    if problem == PROBLEMS[1] and not bool(((labels >= 0) & (labels <= 1)).all()):
        raise GatedPromptError("several labels per image must be given as numbers between 0 and 1, one for each class")
    return labels


@dataclass(frozen=True)
class Axes:
    """Standardised features on their principal axes, `inputs` (N, R); R is at most N and F."""

    inputs: Tensor
    squares: Tensor  # (R,), of the inputs, summed
    axes: Tensor  # (R, F)
    center: Tensor  # (F,)
    scale: Tensor  # (F,)

    @classmethod
    def of(cls, features: Tensor, centered: bool) -> "Axes":
        exact = features.double()
        center = exact.mean(0) if centered else torch.zeros_like(exact[0])
        scale = exact.std(0, correction=0)
        scale[scale < 1e-6 * scale.max().clamp(min=1e-12)] = 1
        x = (exact - center) / scale
        wide = x.shape[1] > x.shape[0]
        squares, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
        kept = squares > 1e-13 * squares[-1]
        squares, vectors = squares[kept], vectors[:, kept]
        axes = (vectors.T @ x) / squares.sqrt()[:, None] if wide else vectors.T
        return cls(*(part.to(features.dtype) for part in (x @ axes.T, squares, axes, center, scale)))


class _Softmax:
    """Cross entropy. A class that a fit does not see takes no part in it."""

    def __init__(self, labels: Tensor, used: Tensor, weights: Tensor) -> None:
        self.labels, self.folds = labels, len(used)
        self.one_hot = F.one_hot(labels, len(weights)).to(weights)
        self.absent = (used.to(weights) @ self.one_hot) == 0  # (T, K)
        self.factors = used * weights[labels]  # (T, N)
        share = self.one_hot.mean(0).clamp(min=1 / len(labels))
        self.curvature = share * (1 - share) * weights

    def loss(self, logits: Tensor) -> Tensor:
        own = logits.gather(2, self.labels[None, :, None].expand(len(logits), -1, 1))[..., 0]
        return (self.factors * (self._masked(logits).logsumexp(2) - own)).sum(1)

    def slope(self, logits: Tensor) -> Tensor:
        return (self._masked(logits).softmax(2) - self.one_hot) * self.factors[..., None]

    def offsets(self, found: Tensor) -> Tensor:
        """Weights add up to 0 over the classes, so the largest logit is never below the smallest bias."""
        least = found.masked_fill(self.absent, torch.inf).amin(1, keepdim=True)
        return torch.where(self.absent, least, found)

    def _masked(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(self.absent[:, None], -torch.inf)


class _OneVsRest:
    """Binary cross entropy of each class. One that all or none of a fit's images have gets a bias alone."""

    def __init__(self, labels: Tensor, used: Tensor, weights: Tensor) -> None:
        self.folds = len(used)
        counts, positives = used.sum(1, keepdim=True), used.to(labels) @ labels
        self.constant = torch.log((positives + 0.5) / (counts - positives + 0.5))  # (T, K)
        first = labels[used.int().argmax(1)][:, None]
        self.varied = (used[..., None] & (labels != first)).any(1)
        self.seen = (used[..., None] & self.varied[:, None]).to(labels)  # (T, N, K)
        self.negative, self.total = 1 - labels, 1 + (weights - 1) * labels
        share = labels.mean(0).clamp(1 / len(labels), 1 - 1 / len(labels))
        self.curvature = share * (1 - share) * weights

    def loss(self, logits: Tensor) -> Tensor:
        return (self.seen * (self.negative * logits + self.total * F.softplus(-logits))).sum((1, 2))

    def slope(self, logits: Tensor) -> Tensor:
        return self.seen * (self.negative - self.total * torch.sigmoid(-logits))

    def offsets(self, found: Tensor) -> Tensor:
        return torch.where(self.varied, found, self.constant)


def _descend(
    problem: _Softmax | _OneVsRest, axes: Axes, strengths: Sequence[float], bias: bool, tolerance: float
) -> Iterator[Fit]:
    """Fits on the axes, (T, K, R) and (T, K). The bias is the weight of an input that is 1."""
    rank, folds = len(axes.squares), problem.folds
    inputs = F.pad(axes.inputs, (0, 1), value=1.0) if bias else axes.inputs
    squares = F.pad(axes.squares, (0, 1), value=float(len(inputs))) if bias else axes.squares
    penalised = torch.ones_like(squares)
    penalised[rank:] = 0
    found = inputs.new_zeros(folds, len(problem.curvature), len(squares))
    for l2 in strengths:
        scale = 1 / (problem.curvature[:, None] * squares + l2 * penalised)
        found = minimise(Objective(inputs, problem.loss, problem.slope, l2 * penalised, scale), found, tolerance)
        offset = found[..., rank] if bias else torch.zeros_like(found[..., 0])
        yield found[..., :rank], problem.offsets(offset)


def _ridge(inputs: Tensor, labels: Tensor, used: Tensor, strengths: Sequence[float], bias: bool) -> Iterator[Fit]:
    """In closed form, in float64."""
    fits = []
    for seen in used:
        x, y = inputs[seen].double(), labels[seen].double()
        middle, offset = (x.mean(0), y.mean(0)) if bias else (torch.zeros_like(x[0]), torch.zeros_like(y[0]))
        squares, axes = torch.linalg.eigh((x - middle).T @ (x - middle))
        fits.append((squares, axes, axes.T @ (x - middle).T @ (y - offset), middle, offset))
    for l2 in strengths:
        rows = []
        for squares, axes, product, middle, offset in fits:
            weight = (axes @ (product / (squares + l2)[:, None])).T
            rows.append((weight, offset - weight @ middle))
        yield torch.stack([w for w, _ in rows]).to(inputs), torch.stack([b for _, b in rows]).to(inputs)
