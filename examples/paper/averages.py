# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From the scores of single runs to the cells of a table: spread over seeds, averages, missing runs, verdicts.

Two averages of VTAB-1k are in use, and they differ: the mean over its 19 tasks (the paper's), and the mean over the
means of its three groups. Both are printed, by name.

The paper gives no spread, and its own tables differ by up to a point where they should not (gated prompts on CUB reach
71.40 with 96 prompts and 70.56 with 100). So nothing below one point is a difference. Where the seeds here spread
more, the tolerance is twice the deviation of the published single run from the mean of these runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from gated_prompt.data.vtab import TASKS as VTAB

GROUPS = {
    group: tuple(name for name, task in VTAB.items() if task.group == group)
    for group in ("natural", "specialized", "structured")
}
MEAN_OF_TASKS, MEAN_OF_GROUPS = AVERAGES = "mean_of_tasks", "mean_of_groups"

NOISE = 1.0  # points
Scores = Mapping[str, Mapping[int, float]]  # column -> seed -> percent


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        values: Percent by seed.
        seeds: How many seeds there should be.
        missing: How many of the columns that an average is over are not there at all. Then there are no values.
        of: How many columns the average is over, 1 for a plain cell.
    """

    values: Mapping[int, float]
    seeds: int
    missing: int = 0
    of: int = 1

    @property
    def complete(self) -> bool:
        return len(self.values) == self.seeds

    def text(self) -> str:
        """'47.61 ± 0.32', with what is missing behind it."""
        if not self.values:
            return "not run" if self.of == 1 else f"incomplete ({self.of - self.missing} of {self.of} tasks)"
        numbers = list(self.values.values())
        spread = f" ± {stdev(numbers):.2f}" if len(numbers) > 1 else ""
        note = "" if self.complete else f" ({len(numbers)} of {self.seeds} seeds)"
        return f"{mean(numbers):.2f}{spread}{note}"


def plain(scores: Scores, column: str, seeds: Sequence[int]) -> Cell:
    """The cell of one column."""
    return Cell({seed: scores[column][seed] for seed in seeds if seed in scores.get(column, {})}, len(seeds))


def average(scores: Scores, columns: Sequence[str], seeds: Sequence[int]) -> Cell:
    """The mean over columns, for each seed that all of them have."""
    missing = sum(not any(seed in scores.get(column, {}) for seed in seeds) for column in columns)
    whole = [seed for seed in seeds if all(seed in scores.get(column, {}) for column in columns)]
    values = {seed: mean(scores[column][seed] for column in columns) for seed in whole}
    return Cell(values, len(seeds), missing, len(columns))


def vtab_averages(scores: Scores, seeds: Sequence[int]) -> dict[str, Cell]:
    """The means of the three groups, over the 19 tasks and over the three groups."""
    cells = {group: average(scores, tasks, seeds) for group, tasks in GROUPS.items()}
    cells[MEAN_OF_TASKS] = average(scores, tuple(VTAB), seeds)
    whole = [seed for seed in seeds if all(seed in cells[group].values for group in GROUPS)]
    values = {seed: mean(cells[group].values[seed] for group in GROUPS) for seed in whole}
    cells[MEAN_OF_GROUPS] = Cell(values, len(seeds), cells[MEAN_OF_TASKS].missing, len(VTAB))
    return cells


def averages(table: str, scores: Scores, columns: Sequence[str], seeds: Sequence[int]) -> dict[str, Cell]:
    """The averages that a table has, by name. `columns` are those of the whole table."""
    if table == "vtab":
        return vtab_averages(scores, seeds)
    if table in ("fgvc", "fgvc_prompts"):
        return {MEAN_OF_TASKS: average(scores, columns, seeds)}
    return {}


def with_mean_of_groups(values: Mapping[str, float]) -> dict[str, float]:
    """Published numbers, with the mean of the three groups where they are there."""
    if all(group in values for group in GROUPS):
        return {**values, MEAN_OF_GROUPS: mean(values[group] for group in GROUPS)}
    return dict(values)


def judge(cell: Cell, published: float | None, doubts: Sequence[str]) -> dict[str, Any]:
    """Published, measured, difference, tolerance (in points) and the verdict, also as texts for a table.

    The verdict is "agrees", "differs", "incomplete" or, with the first of the `doubts`, "not comparable".
    """
    values = list(cell.values.values())
    measured = mean(values) if values else None
    spread = stdev(values) * sqrt(1 + 1 / len(values)) if len(values) > 1 else 0.0
    tolerance = max(NOISE, 2 * spread)
    difference = None if measured is None or published is None else measured - published
    if difference is None or not cell.complete:
        verdict = "incomplete"
    elif doubts:
        verdict = f"not comparable: {'; '.join(doubts)}"
    else:
        verdict = "agrees" if abs(difference) <= tolerance else "differs"
    numbers = {"published": published, "measured": measured, "difference": difference, "tolerance": tolerance}
    text = ["-" if v is None else f"{v:+.2f}" if name == "difference" else f"{v:.2f}" for name, v in numbers.items()]
    return {**numbers, "verdict": verdict, "text": [*text, verdict]}
