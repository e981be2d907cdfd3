# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The confusion matrix of a whole data set, distributed over all processes."""

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from gated_prompt.data.ade20k import IGNORE
from gated_prompt.segmentation.sliding_window import Predict

from .data import WholeImages


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
