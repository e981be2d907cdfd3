# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Numbers of the results that tables and figures show."""

from statistics import median
from typing import Any

from .plan import ONE, Cell

NAMES = {"gated": "gated prompts", "lora": "LoRA adapters", "full": "full models"}
Results = dict[str, Any]


def measured_as(contender: str, tasks: int) -> str:
    """The contender that stands for this one: for one gated task, the server that has no other."""
    return ONE if contender == "gated" and tasks == 1 else contender


def rounds(results: Results, contender: str, tasks: int, clients: int) -> list[dict[str, float]]:
    """The visits of a cell."""
    cell = Cell(measured_as(contender, tasks), tasks, clients)
    return list(results["cells"].get(cell.key, []))


def axis(results: Results, name: str) -> list[int]:
    """The numbers of tasks or of clients that were measured."""
    place = Cell._fields.index(name)
    return sorted({int(key.split()[place]) for key in results["cells"]})


def middle(visits: list[dict[str, float]], what: str) -> float:
    """Median over the rounds."""
    return median(one[what] for one in visits)


def ratio(results: Results, contender: str, clients: int) -> float | None:
    """Time to an answer with most tasks divided by that with one, in the same round: median over the rounds."""
    most = rounds(results, contender, axis(results, "tasks")[-1], clients)
    one = rounds(results, contender, 1, clients)
    pairs = list(zip(most, one, strict=False))
    return median(a["mean_ms"] / b["mean_ms"] for a, b in pairs) if pairs else None


def megabytes(results: Results, contender: str, tasks: int) -> float | None:
    """Resident memory of the replica."""
    found: float | None = results["memory"].get(f"{measured_as(contender, tasks)} {tasks}")
    return found
