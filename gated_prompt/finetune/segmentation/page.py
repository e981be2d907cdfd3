# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""report.html of a segmentation run: all results in one file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from .pictures import draw_all


def write_page(
    file: Path,
    results: Mapping[str, Any],
    colours: np.ndarray,
    worst: Sequence[Mapping[str, Any]],
    even: Sequence[Mapping[str, Any]],
    use: Path,
) -> None:
    """Write the page atomically. `results` is the content of results.json."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    settings = results["settings"]
    data = next(Path(settings[name]).name for name in ("train_dir", "train_file", "dataset") if settings[name])
    backbone = Path(settings["backbone"]).name
    legend = [
        (name, "#" + bytes(int(part) for part in colour).hex())
        for name, colour in zip(results["names"], colours, strict=False)
    ]
    page = pages.get_template("report.html").render(
        title=f"{data} on {backbone}",
        backbone=backbone,
        r=results,
        drawings=draw_all(results, colours),
        legend=legend,
        worst=worst,
        even=even,
        use=use,
    )
    partial = file.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, file)
