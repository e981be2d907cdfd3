# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The confusion matrix of a whole data set, distributed over all processes, and a picture of some predictions."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from gated_prompt.data.ade20k import IGNORE
from gated_prompt.finetune.segmentation.scores import confusion_of
from gated_prompt.segmentation.colours import palette
from gated_prompt.segmentation.sliding_window import Predict

from .data import SegmentationTask, WholeImages

PICTURES = 4
Row = tuple[Image.Image, np.ndarray, np.ndarray]


def confusion_matrix(
    model: nn.Module, data: WholeImages, predict: Predict, num_classes: int, accelerator: Accelerator
) -> Tensor:
    """Compute the confusion matrix (K, K) over all images of `data`, distributed over all processes."""
    model = accelerator.unwrap_model(model).eval()
    mine = range(accelerator.process_index, len(data), accelerator.num_processes)  # each image once
    loader = DataLoader(Subset(data, mine), batch_size=None)
    found = torch.zeros(num_classes, num_classes, dtype=torch.long, device=accelerator.device)
    for pixels, labels in tqdm(loader, desc="evaluate", disable=not accelerator.is_main_process, leave=False):
        predicted = predict(model, pixels.to(accelerator.device)).argmax(0)
        found += confusion_of(predicted, labels.to(accelerator.device), num_classes)
    return accelerator.reduce(found).cpu()


def plot_predictions(path: Path, rows: list[Row], class_names: list[str]) -> None:
    """Draw one row per (image, true labels (H, W), predicted labels (H, W)), and a legend of the classes shown."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    colours = palette(len(class_names))
    figure, axes = plt.subplots(len(rows), 3, figsize=(9, 2.4 * len(rows) + 0.6), layout="constrained", squeeze=False)
    for row, (image, truth, predicted) in zip(axes, rows, strict=True):
        shown = (image, colours[truth], colours[predicted])
        for ax, panel, title in zip(row, shown, ("image", "ground truth", "prediction"), strict=True):
            ax.imshow(panel)
            ax.set_title(title, fontsize=9)
            ax.axis("off")
    seen = np.unique(np.concatenate([labels.ravel() for _, *maps in rows for labels in maps]))
    legend = [Patch(facecolor=colours[label] / 255, label=class_names[label]) for label in seen if label != IGNORE]
    figure.legend(handles=legend[:24], loc="outside lower center", ncols=6, fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_predictions(
    path: Path, model: nn.Module, task: SegmentationTask, data: WholeImages, predict: Predict
) -> None:
    """Draw a few evenly spaced test images with ground truth and prediction."""
    device = next(model.parameters()).device
    rows = []
    for index in range(0, len(data), max(1, -(-len(data) // PICTURES))):
        pixels, labels = data[index]
        predicted = predict(model, pixels.to(device)).argmax(0)
        rows.append((task.test[index][0], labels.numpy(), predicted.cpu().numpy()))
    plot_predictions(path, rows, task.class_names)
