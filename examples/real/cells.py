# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Numbers out of the cells, for tables and checks."""

from collections.abc import Sequence
from typing import Any

from . import grid

Found = dict[tuple[str, str], dict[str, Any]]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def finals(task: str, row: str, found: Found, what: str = "test") -> list[float]:
    """Percent of the final cells of a row that are there, by seed."""
    cells = [grid.final(task, row, seed, found) for seed in grid.SEEDS]
    return [100 * found[task, cell.name][what] for cell in cells if cell is not None and (task, cell.name) in found]


def best_block(task: str, found: Found) -> int:
    """The block that the probe chose on the validation images."""
    return int(found[task, "probe"]["chosen_block"])


def head_scores(task: str, block: int, head: tuple[str, str], part: str, found: Found) -> list[float]:
    """Percent by seed of a head that was trained on the frozen features of a block."""
    cell = found.get((task, f"{head[0]}-block{block}"))
    return [] if cell is None else [100 * value for value in cell[head[1]][part]]
