# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Measures by torchmetrics, one main measure for each kind of label and others, and class weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional import mean_absolute_error, r2_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multilabel_average_precision,
    multilabel_f1_score,
)

from ..errors import GatedPromptError
from ..predictor import Problem
from .image_set import LABEL_NOUNS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, ImageSet

DRAWS = 1000  # of the bootstrap
LEVEL = 0.95
MAIN = {
    SINGLE_LABEL: ("accuracy", "balanced_accuracy", "macro_f1"),
    MULTI_LABEL: ("mean_average_precision",),
    REGRESSION: ("mean_absolute_error",),
}
SMALLER_IS_BETTER = ("mean_absolute_error",)


@dataclass(frozen=True)
class Measure:
    """The main measure of a run. `score_to_maximize` turns it into what choices go by."""

    name: str
    num_classes: int

    def __call__(self, scores: Tensor, targets: Tensor) -> float:
        return float(_measure(self.name, scores, targets, self.num_classes))

    def score_to_maximize(self, scores: Tensor, targets: Tensor) -> float:
        return -self(scores, targets) if self.name in SMALLER_IS_BETTER else self(scores, targets)

    def text(self, value: float) -> str:
        return f"{value:.4g}" if self.name in SMALLER_IS_BETTER else f"{100 * value:.1f} %"


def main_measure(problem: Problem, asked: str, num_classes: int) -> Measure:
    """The measure that choices are made by. `asked` "auto" means the first for the problem.

    Raises:
        GatedPromptError: there is no such measure for these labels.
    """
    known = MAIN[problem]
    if asked not in ("auto", *known):
        raise GatedPromptError(
            f"--measure {asked!r} is not for {LABEL_NOUNS[problem]}. Choose from: auto, {', '.join(known)}."
        )
    return Measure(known[0] if asked == "auto" else asked, num_classes)


def all_measures(
    problem: Problem, scores: Tensor, targets: Tensor, measure: Measure, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return every measure that is reported for scores (N, K), which are logits or numbers."""
    count = len(names)
    interval = interval_of(measure, scores, targets)
    found: dict[str, Any] = {measure.name: measure(scores, targets), "interval": interval}
    if problem == SINGLE_LABEL:
        found |= {name: float(_measure(name, scores, targets, count)) for name in MAIN[SINGLE_LABEL]}
        found["calibration_error"] = calibration_error(scores.softmax(-1), targets)
        recall = multiclass_accuracy(scores, targets, count, average=None)
        counts = targets.bincount(minlength=count).tolist()
        found["per_class"] = {
            n: {"accuracy": r, "pictures": c} for n, r, c in zip(names, recall.tolist(), counts, strict=True)
        }
        found["confusion"] = multiclass_confusion_matrix(scores, targets, count).tolist()
    elif problem == MULTI_LABEL:
        precision = multilabel_average_precision(scores.sigmoid(), targets.long(), count, average=None)
        shares = [
            None if math.isnan(one) else one for one in precision.tolist()
        ]  # nan means that the label is on no image
        found["per_class"] = {n: {"average_precision": p} for n, p in zip(names, shares, strict=True)}
        found["macro_f1"] = float(multilabel_f1_score(scores.sigmoid(), targets.long(), count))
    else:
        found["r2"] = float(r2_score(scores, targets)) if len(targets) > 1 else float("nan")
    return found


def calibration_error(shares: Tensor, targets: Tensor) -> float:
    """Expected difference between confidence and accuracy, in 15 bins, of probabilities (N, K)."""
    return float(multiclass_calibration_error(shares, targets, shares.shape[1], n_bins=15))


def interval_of(measure: Measure, scores: Tensor, targets: Tensor) -> list[float]:
    """Lower and upper end of the 95 % interval: Wilson's of an accuracy, else the bootstrap's.

    Of images that are all classified correctly, redrawn ones are too: the bootstrap would promise 100 %.
    """
    if measure.name == "accuracy":
        return wilson(measure(scores, targets), len(targets))
    return bootstrap(lambda rows: measure(scores[rows], targets[rows]), len(targets))


def wilson(share: float, count: int) -> list[float]:
    """Wilson's 95 % interval (1927) of a share that was found among `count` images."""
    square = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2 / count
    middle = (share + square / 2) / (1 + square)
    half = (square * (share * (1 - share) + square / 4)) ** 0.5 / (1 + square)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap(of_rows: Callable[[Tensor], float], count: int) -> list[float]:
    """Lower and upper end of the 95 % percentile interval of a measure over resampled images, with a fixed seed."""
    rng = np.random.default_rng(0)
    values = [of_rows(torch.from_numpy(rng.integers(0, count, count))) for _ in range(DRAWS)]
    return [float(value) for value in np.nanpercentile(values, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])]


def _measure(name: str, scores: Tensor, targets: Tensor, count: int) -> Tensor | float:
    if name == "accuracy":
        return (scores.argmax(-1) == targets).double().mean()
    if name == "balanced_accuracy":
        return multiclass_accuracy(scores, targets, count, average="macro")
    if name == "macro_f1":
        return multiclass_f1_score(scores, targets, count, average="macro")
    if name == "mean_average_precision":
        return multilabel_average_precision(scores.sigmoid(), targets.long(), count, average="macro")
    return mean_absolute_error(scores, targets)


def brief(measures: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers among the measures."""
    return {name: value for name, value in measures.items() if isinstance(value, float)}


def balanced_weights(data: ImageSet) -> list[float]:
    """Of classes N / (K n_k), as in scikit-learn. Of labels the negatives for each positive, 1 if there are none.

    Raises:
        GatedPromptError: the images have numbers.
    """
    if data.problem == REGRESSION:
        raise GatedPromptError("--class_weights balanced is for classes and labels. These images have numbers.")
    if data.problem == SINGLE_LABEL:
        counts = data.targets.bincount(minlength=len(data.names)).tolist()
        return [len(data) / (len(counts) * count) if count else 1.0 for count in counts]
    positives = data.targets.sum(0).tolist()
    return [(len(data) - count) / count if count else 1.0 for count in positives]
