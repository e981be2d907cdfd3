# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""report.html of a segmentation run, and its pictures: masks, predictions, mIoU by block and by epoch."""

import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ...segmentation.colours import overlay
from ...segmenter import IGNORE
from ..page import data_url, write_page
from ..svg import Line, line_chart, percent
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


def draw_all(results: Mapping[str, Any]) -> dict[str, Markup | None]:
    """Return both charts of the report. There are no curves if nothing that was trained is kept."""
    kept = [row for row in results["comparison"] if row["chosen"] and row.get("curve")]
    method = [row for row in results["comparison"] if kept and row.get("method") == kept[0]["method"]]
    return {
        "by_block": by_block(results["candidates"], results["blocks"]),
        "curves": curves(method) if method else None,
    }


def by_block(found: Sequence[Mapping[str, Any]], read: Sequence[int]) -> Markup:
    """mIoU of a linear map on each block, and on the sets as lines from their first to their last block."""
    singles = [one for one in found if len(one["blocks"]) == 1]
    lines = [Line("one block", [one["blocks"][0] for one in singles], [one["mean_iou"] for one in singles])]
    for one in found:
        if len(one["blocks"]) > 1:
            name = f"blocks {', '.join(map(str, one['blocks']))}" + (" (chosen)" if one["chosen"] else "")
            lines.append(Line(name, one["blocks"], [one["mean_iou"]] * len(one["blocks"])))
    return line_chart("mIoU of a linear map", "block", lines, percent, read=read)


def curves(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """mIoU on validation over the epochs. Epoch 0 is the start."""
    lines = [
        Line(row["name"], [p["epoch"] for p in row["curve"]], [p["mean_iou"] for p in row["curve"]]) for row in rows
    ]
    return line_chart("mIoU on validation", "epoch", lines, percent)


def write_report(
    file: Path,
    results: Mapping[str, Any],
    colours: np.ndarray,
    worst: Sequence[Mapping[str, Any]],
    even: Sequence[Mapping[str, Any]],
    use: Path,
    last: bool,
) -> None:
    """Write the page atomically. `results` is the content of results.json. `last` means that training has ended."""
    paint = ["#" + bytes(int(part) for part in colour).hex() for colour in colours[: len(results["names"])]]
    write_page(
        "segmentation/report.html",
        file,
        results,
        expected=results["test"] or next(row for row in results["comparison"] if row["chosen"]),
        not_kept=last and results["chosen"] == "frozen" and len(results["comparison"]) > 1,
        last=last,
        drawings=draw_all(results),
        legend=list(zip(results["names"], paint, strict=True)),
        worst=worst,
        even=even,
        use=shlex.quote(str(use.resolve())),
    )
