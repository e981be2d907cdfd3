# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""report.html of a segmentation run: all results in one file."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import page
from .pictures import draw_all


def write_page(
    file: Path,
    results: Mapping[str, Any],
    colours: np.ndarray,
    worst: Sequence[Mapping[str, Any]],
    even: Sequence[Mapping[str, Any]],
    use: Path,
    last: bool,
) -> None:
    """Write the page atomically; `results` is the content of results.json, `last`: training has ended."""
    paint = ["#" + bytes(int(part) for part in colour).hex() for colour in colours[: len(results["names"])]]
    page.write_page(
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
