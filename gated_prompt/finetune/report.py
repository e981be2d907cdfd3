# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""report.html: all results of a run in one file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from .mistakes import Mistake

BESIDE = ("balanced_accuracy", "macro_f1", "calibration_error", "r2")


def write_report(
    file: Path, results: Mapping[str, Any], drawings: Mapping[str, str | None], mistakes: Sequence[Mistake], use: Path
) -> None:
    """Write the page atomically; `results` is the content of results.json."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    settings = results["settings"]
    backbone = Path(settings["backbone"]).name
    data = next(Path(settings[name]).name for name in ("train_dir", "train_file", "dataset") if settings[name])
    measured = {name for row in results["comparison"] for name in row["measures"]} - {results["measure"]}
    page = pages.get_template("report.html").render(
        title=f"{data} on {backbone}",
        backbone=backbone,
        r=results,
        label=results["measure"].replace("_", " "),
        beside=[name for name in BESIDE if name in measured],
        drawings=drawings,
        mistakes=mistakes,
        use=use,
    )
    partial = file.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, file)
