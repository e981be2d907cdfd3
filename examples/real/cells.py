# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Numbers out of the cells, for tables and checks."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from . import grid

Found = dict[tuple[str, str], dict[str, Any]]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def finals(task: str, row: str, found: Found, what: str = "test") -> list[float]:
    """Percent of the final cells of a row that are there, by seed."""
    return [100 * run[what] for run in final_runs(task, row, found)]


def final_runs(task: str, row: str, found: Found) -> list[dict[str, Any]]:
    """The final cells of a row that are there, by seed."""
    cells = [grid.final(task, row, seed, found) for seed in grid.SEEDS]
    return [found[task, cell.name] for cell in cells if cell is not None and (task, cell.name) in found]


def spread(values: Sequence[float]) -> str:
    """'91.2 ± 0.3'; one seed '91.2 (1)', two '91.2 ± 0.3 (2)'; none: 'not run'."""
    if not values:
        return "not run"
    text = f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
    return text if len(values) == len(grid.SEEDS) else f"{text} ({len(values)})"


def best_block(task: str, found: Found) -> int:
    """The block that the probe chose on the validation images."""
    return int(found[task, "probe"]["chosen_block"])


def head_scores(task: str, block: int, head: tuple[str, str], part: str, found: Found) -> list[float]:
    """Percent by seed of a head that was trained on the frozen features of a block."""
    cell = found.get((task, f"{head[0]}-block{block}"))
    return [] if cell is None else [100 * value for value in cell[head[1]][part]]
