# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Plot predicted label maps next to the images and the ground truth."""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from gated_prompt.data.ade20k import IGNORE
from gated_prompt.segmentation.sliding_window import Predict

from .data import SegmentationTask, WholeImages

PICTURES = 4
GOLDEN = 0.618034  # steps of this size keep neighbouring hues apart for any number of classes
Row = tuple[Image.Image, np.ndarray, np.ndarray]


def palette(num_classes: int) -> np.ndarray:
    """Return colours (256, 3) uint8 for labels 0 to `num_classes` - 1. Other labels and ignored pixels are white."""
    colours = np.full((256, 3), 255, dtype=np.uint8)
    for label in range(num_classes):
        value = (0.9, 0.65)[label % 2]
        colours[label] = [round(255 * part) for part in colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.75, value)]
    return colours


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
