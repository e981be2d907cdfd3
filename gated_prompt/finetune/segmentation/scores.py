# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""mIoU, mAcc and aAcc from the confusion matrix of a whole data set, as mmsegmentation computes them."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ...errors import DataError
from ...segmenter import IGNORE
from ..metrics import DRAWS, LEVEL


@dataclass(frozen=True)
class Scores:
    """Segmentation scores in [0, 1].

    Attributes:
        mean_iou: mean over classes of intersection / union of predicted and true pixels (mIoU).
        mean_accuracy: mean over classes of the share of their pixels predicted correctly (mAcc).
        pixel_accuracy: share of all pixels predicted correctly (aAcc).
        iou: IoU by class. None for a class neither present nor predicted, which the means leave out.
    """

    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: list[float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def score(confusion: Tensor) -> Scores:
    """Compute scores from a confusion matrix (K, K), rows true and columns predicted, without ignored pixels.

    Raises:
        DataError: the matrix is zero.
    """
    confusion = confusion.double()
    right, true = confusion.diag(), confusion.sum(1)
    if not true.sum():
        raise DataError("no pixel of the test images has a label, so there is nothing to score")
    iou = right / (true + confusion.sum(0) - right)  # 0 / 0 is NaN
    return Scores(
        mean_iou=iou.nanmean().item(),
        mean_accuracy=(right / true).nanmean().item(),
        pixel_accuracy=(right.sum() / true.sum()).item(),
        iou=[None if math.isnan(each) else each for each in iou.tolist()],
    )


def majority_score(confusion: Tensor) -> Scores:
    """Return the scores of always predicting the most frequent class."""
    true = confusion.sum(1)
    constant = torch.zeros_like(confusion)
    constant[:, true.argmax()] = true
    return score(constant)


def confusion_of(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Pixels (K, K) of a label map, rows true and columns predicted, by torchmetrics, without those ignored."""
    return multiclass_confusion_matrix(
        predicted[None].long(), labels[None].long(), num_classes, ignore_index=IGNORE, validate_args=False
    )


def mean_ious(confusions: Tensor) -> Tensor:
    """mIoU (...) of confusion matrices (..., K, K). Classes that are neither present nor predicted are left out."""
    confusions = confusions.double()
    right = confusions.diagonal(dim1=-2, dim2=-1)
    return (right / (confusions.sum(-1) + confusions.sum(-2) - right)).nanmean(-1)


def interval(confusions: Tensor, others: Tensor | None = None) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of the mIoU over redrawn images, from their confusion matrices (N, K, K).

    With `others`, of the same images: that of the gain of `others` over `confusions`.
    """
    count = len(confusions)
    drawn = np.random.default_rng(0).integers(0, count, (DRAWS, count))
    times = torch.from_numpy(np.stack([np.bincount(rows, minlength=count) for rows in drawn])).double()

    def values(matrices: Tensor) -> Tensor:
        return mean_ious((times @ matrices.double().flatten(1)).unflatten(1, matrices.shape[1:]))

    found = values(confusions) if others is None else values(others) - values(confusions)
    low, high = np.nanpercentile(found.numpy(), [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return float(low), float(high)
