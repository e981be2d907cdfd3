# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""report.html of a segmentation run, and its pictures: masks, predictions, IoU by class, accuracy by block."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor

from ...segmentation.colours import overlay
from ...segmenter import IGNORE
from ..figures import confusion, data_url, figure_url
from ..report import write_page
from .mask_set import MaskSet
from .scores import mean_ious

WIDTH = 240  # pixels of a panel
WORST, EVEN = 8, 4
WRONG, RIGHT, IGNORED = (213, 94, 0), (235, 235, 235), (255, 255, 255)


def shown_images(confusions: Tensor) -> tuple[list[int], list[int]]:
    """The images with the worst mIoU, and some evenly spaced in the order of it, the best among them."""
    values = mean_ious(confusions)
    order = values.nan_to_num(nan=2.0).argsort(stable=True).tolist()
    worst = order[: min(WORST, len(order))]
    rest = order[len(worst) :]
    even = [rest[round(place)] for place in np.linspace(0, len(rest) - 1, min(EVEN, len(rest)))] if rest else []
    return worst, list(dict.fromkeys(even))


def panels(image: Image.Image, truth: np.ndarray, predicted: np.ndarray, colours: np.ndarray) -> str:
    """Four panels in a row: image, mask, prediction over the image, and where they differ."""
    wrong = np.full((*truth.shape, 3), RIGHT, dtype=np.uint8)
    wrong[truth != predicted] = WRONG
    wrong[truth == IGNORE] = IGNORED
    row = [image, Image.fromarray(colours[truth]), overlay(image, predicted, colours), Image.fromarray(wrong)]
    height = max(1, round(WIDTH * image.height / image.width))
    sheet = Image.new("RGB", (len(row) * (WIDTH + 4) - 4, height), "white")
    for place, panel in enumerate(row):
        nearest = Image.Resampling.NEAREST if place in (1, 3) else Image.Resampling.BILINEAR
        sheet.paste(panel.resize((WIDTH, height), nearest), (place * (WIDTH + 4), 0))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return data_url(file.getvalue(), "png")


def image_rows(
    data: MaskSet, confusions: Tensor, predictions: Mapping[int, Tensor], indices: Sequence[int], colours: np.ndarray
) -> list[dict[str, Any]]:
    """Panels, name and mIoU of some images."""
    values = mean_ious(confusions)
    return [
        {
            "name": data.pictures[index].name,
            "mean_iou": float(values[index]),
            "picture": panels(data.image(index), data.labels(index).numpy(), predictions[index].numpy(), colours),
        }
        for index in indices
    ]


def draw_all(results: Mapping[str, Any], colours: np.ndarray) -> dict[str, str | None]:
    """Every drawing of the report by its name."""
    trained = [row for row in results["comparison"] if row.get("curve")]
    return {
        "by_block": by_block(results["candidates"]),
        "by_class": by_class(results["per_class"], colours),
        "curves": curves(trained) if trained else None,
        "confusion": confusion(results["confusion"], results["names"]) if len(results["names"]) <= 60 else None,
    }


def by_block(found: Sequence[Mapping[str, Any]]) -> str:
    """mIoU of a linear map on each block, and on the sets as lines from their first to their last block."""
    figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    singles = [one for one in found if len(one["blocks"]) == 1]
    ax.plot([one["blocks"][0] for one in singles], [100 * one["mean_iou"] for one in singles], "o-", label="one block")
    for one in found:
        if len(one["blocks"]) > 1:
            label = ", ".join(map(str, one["blocks"])) + (" (chosen)" if one["chosen"] else "")
            ax.plot(one["blocks"], [100 * one["mean_iou"]] * len(one["blocks"]), "s--", markersize=4, label=label)
    ax.set(xlabel="block", ylabel="mIoU in %")
    ax.legend(fontsize=7)
    return figure_url(figure)


def by_class(classes: Mapping[str, Mapping[str, Any]], colours: np.ndarray) -> str:
    """IoU of each class, in its colour."""
    names = list(classes)
    figure, ax = plt.subplots(figsize=(7, 0.9 + 0.24 * len(names)), layout="constrained")
    values = [100 * (one["iou"] or 0) for one in classes.values()]
    ax.barh(range(len(names)), values, color=colours[: len(names)] / 255, edgecolor="0.3", linewidth=0.5)
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel="IoU in %", xlim=(0, 100))
    ax.invert_yaxis()
    return figure_url(figure)


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """mIoU on validation over the epochs. Epoch 0 is the start."""
    figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for row in rows:
        points = row["curve"]
        ax.plot(
            [p["epoch"] for p in points], [100 * p["mean_iou"] for p in points], "o-", markersize=3, label=row["name"]
        )
    ax.set(xlabel="epoch", ylabel="mIoU on validation in %")
    ax.legend(fontsize=8)
    return figure_url(figure)


def write_report(
    file: Path,
    results: Mapping[str, Any],
    colours: np.ndarray,
    worst: Sequence[Mapping[str, Any]],
    even: Sequence[Mapping[str, Any]],
    use: Path,
) -> None:
    """Write the page atomically. `results` is the content of results.json."""
    legend = [
        (name, "#" + bytes(int(part) for part in colour).hex())
        for name, colour in zip(results["names"], colours, strict=False)
    ]
    write_page(
        file,
        Path(__file__).with_name("report.html"),
        results,
        drawings=draw_all(results, colours),
        legend=legend,
        worst=worst,
        even=even,
        use=use,
    )
