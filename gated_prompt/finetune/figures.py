# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The figures of the report, as PNG in data URLs, so that the page is a single file. The most confident mistakes."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gated_prompt import plots

from ..inspect.readouts import prompts_are_active
from .image_set import MULTI_LABEL, SINGLE_LABEL, ImageSet

mpl.use("Agg")

THUMBNAIL = 128  # pixels


def data_url(content: bytes, kind: str) -> str:
    """An image file as a URL that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(image: Image.Image) -> str:
    """A small JPEG of an image."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return data_url(file.getvalue(), "jpeg")


def by_block(results: Sequence[Mapping[str, float]], read: int, trained: Mapping[str, float], name: str) -> str:
    """Nearest neighbours and probe over the blocks, and what was trained on the one that is read."""
    figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    blocks = [result["block"] for result in results]
    ax.plot(blocks, [result["linear_probe"] for result in results], "o-", label="linear probe")
    ax.plot(blocks, [result["nearest_neighbours"] for result in results], "s--", label="nearest neighbours")
    for method, value in trained.items():
        ax.plot([read], [value], "*", markersize=12, label=method)
    ax.axvline(read, color="0.85", zorder=0)
    ax.set(xlabel="block", ylabel=name.replace("_", " "), xticks=blocks)
    ax.legend(fontsize=8)
    return figure_url(figure)


def learned(model: Any) -> str:
    """Gates and temperatures by block."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    plots.plot_gates({"learned": model}, ax=axes[0])
    plots.plot_temperatures({"learned": model}, ax=axes[1])
    return figure_url(figure)


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> str:
    """Measure and loss on validation over the epochs. Epoch 0 is the start."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for run, curve in runs.items():
        epochs = [point["epoch"] for point in curve]
        axes[0].plot(epochs, [point[name] for point in curve], "o-", markersize=3, label=run)
        axes[1].plot(epochs, [point["loss"] for point in curve], "o-", markersize=3, label=run)
    for ax, label in zip(axes, (name.replace("_", " "), "loss"), strict=True):
        ax.set(xlabel="epoch", ylabel=f"{label} on validation")
        ax.legend(fontsize=8)
    return figure_url(figure)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Rows are true classes, columns those that were predicted, and colours are shares of the row."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(12.0, 2.5 + 0.32 * len(names))
    figure, ax = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ax.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
    size = 8 if len(names) <= 30 else 4
    ax.set_xticklabels(names, rotation=90, fontsize=size)
    ax.set_yticklabels(names, fontsize=size)
    if len(names) <= 20:
        for row in range(len(names)):
            for column in range(len(names)):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    text = f"{counts[row, column]:.0f}"
                    ax.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=ax, shrink=0.6)
    return figure_url(figure)


def figure_url(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return data_url(file.getvalue(), "png")


def draw_all(results: Mapping[str, Any], model: Any) -> dict[str, str | None]:
    """Every drawing of the report by its name. None where there is nothing. `model`: the best one that was trained."""
    name = results["measure"]
    trained = [row for row in results["comparison"] if "curve" in row]
    values = {row["name"]: row["measures"][name] for row in trained}
    return {
        "by_block": by_block(results["blocks"], results["block"], values, name),
        "learned": learned(model) if model is not None and prompts_are_active(model) else None,
        "curves": curves({row["name"]: row["curve"] for row in trained}, name) if trained else None,
        "confusion": confusion(results["confusion"], results["names"]) if results["confusion"] else None,
    }


MOST = 24


@dataclass(frozen=True)
class Mistake:
    """A thumbnail with the true and the predicted class."""

    name: str
    picture: str
    truth: str
    said: str


def worst_mistakes(data: ImageSet, scores: Tensor) -> list[Mistake]:
    """Wrong answers in the order of their confidence. For numbers the largest errors."""
    if data.problem == SINGLE_LABEL:
        sure, said = scores.softmax(-1).max(-1)
        amount = torch.where(said == data.targets, -1.0, sure)
        texts = [
            (data.names[int(true)], f"{data.names[int(index)]} ({100 * float(share):.0f} %)")
            for true, index, share in zip(data.targets, said, sure, strict=True)
        ]
    elif data.problem == MULTI_LABEL:
        shares = scores.sigmoid()
        gaps = (shares - data.targets).abs()
        amount, where = gaps.max(-1)
        amount = torch.where(amount < 0.5, -1.0, amount)
        texts = [
            (
                f"{'is' if data.targets[row, column] else 'is not'} {data.names[int(column)]}",
                f"{100 * float(shares[row, column]):.0f} %",
            )
            for row, column in enumerate(where)
        ]
    else:
        amount = (scores - data.targets).abs()[:, 0]
        texts = [
            (f"{float(true[0]):.4g}", f"{float(score[0]):.4g}")
            for true, score in zip(data.targets, scores, strict=True)
        ]
    order = [int(index) for index in amount.argsort(descending=True, stable=True)[:MOST] if amount[index] >= 0]
    return [Mistake(data.pictures[i].name, thumbnail(data.pictures[i].decode()), *texts[i]) for i in order]
