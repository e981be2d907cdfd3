# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""mIoU, mAcc and aAcc from the confusion matrix of a whole data set, as mmsegmentation computes them."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from gated_prompt.data.ade20k import IGNORE
from gated_prompt.errors import DataError

from .data import WholeImages
from .sliding_window import Predict


@dataclass(frozen=True)
class Scores:
    """Segmentation scores in [0, 1].

    Attributes:
        mean_iou: mean over classes of intersection / union of predicted and true pixels (mIoU).
        mean_accuracy: mean over classes of the share of their pixels predicted correctly (mAcc).
        pixel_accuracy: share of all pixels predicted correctly (aAcc).
        iou: IoU by class; None for a class neither present nor predicted, which the means leave out.
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


def confusion_matrix(
    model: nn.Module, data: WholeImages, predict: Predict, num_classes: int, accelerator: Accelerator
) -> Tensor:
    """Compute the confusion matrix (K, K) over all images of `data`, distributed over all processes."""
    metric = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE, validate_args=False).to(accelerator.device)
    model = accelerator.unwrap_model(model).eval()
    mine = range(accelerator.process_index, len(data), accelerator.num_processes)  # each image once
    loader = DataLoader(Subset(data, mine), batch_size=None)
    for pixels, labels in tqdm(loader, desc="evaluate", disable=not accelerator.is_main_process, leave=False):
        predicted = predict(model, pixels.to(accelerator.device)).argmax(0)
        metric.update(predicted[None], labels.to(accelerator.device)[None])
    return metric.compute().cpu()
