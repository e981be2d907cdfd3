# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From the scores of single runs to a table: spread over seeds, averages, missing runs and verdicts, as JSON.

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

from .grids import Table, column, published, published_row, scores
from .jobs import NEUTRAL, Run, without
from .presets import Row, Searched, at_edge, best_of

GROUPS = {
    group: tuple(name for name, task in VTAB.items() if task.group == group)
    for group in ("natural", "specialized", "structured")
}
MEAN_OF_TASKS, MEAN_OF_GROUPS = AVERAGES = "mean_of_tasks", "mean_of_groups"

NOISE = 1.0  # points
Scores = Mapping[str, Mapping[int, float]]  # column -> seed -> percent
Finals = Mapping[tuple[str, str, int], Run]  # by row, task and seed
Records = Mapping[str, Mapping[str, Any]]


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


def summarize(
    name: str,
    table: Table,
    kind: str,
    rows: Sequence[Row],
    tasks: Sequence[str],
    seeds: Sequence[int],
    finals: Finals,
    records: Records,
    searches: Mapping[tuple[str, str], Sequence[Searched]] = {},
) -> dict[str, Any]:
    """Scores, averages and published numbers of each row, ready for JSON. `complete`: whether every run is there."""
    made = {key: records[run.key] for key, run in finals.items() if run.key in records}
    found = {key: result for key, result in made.items() if not result.get("diverged")}
    shown = [column(task, metric) for task in tasks for metric in table.metrics]
    whole = [column(task, metric) for task in table.tasks for metric in table.metrics]
    parts = [part for result in found.values() for part in result["data"]]
    summary: dict[str, Any] = {
        "table": name,
        "title": table.title,
        "backbone_kind": kind,
        "seeds": list(seeds),
        "complete": len(found) == len(rows) * len(tasks) * len(seeds),
        "diverged": sorted(finals[key].name for key in made.keys() - found.keys()),
        **{
            f"{state}_data": sorted({f"{d['dataset']} {d['split']}: {d['note']}" for d in parts if _is(d, state)})
            for state in ("exact", "lossy", "inexact")
        },
        "rows": {},
        "versions": next((result["versions"] for result in found.values()), {}),
        "devices": sorted({result["device"] for result in found.values()}),
        "published_in": published()["source"],
    }
    for row in rows:
        values, source = published_row(name, kind, row.name)
        own = {key[1:]: result for key, result in found.items() if key[0] == row.name}
        cells, best = (
            {c: plain(by_column, c, seeds) for c in shown} | averages(name, by_column, whole, seeds)
            for by_column in (_by_column(table, own, whole, False), _by_column(table, own, whole, True))
        )
        values = with_mean_of_groups(values)
        doubts = _doubts(row, own, [run for key, run in finals.items() if key[0] == row.name])
        first = {task: result for task in tasks for (name_of, _), result in own.items() if name_of == task}
        summary["rows"][row.name] = {
            "method": row.method,
            "scores": {name: _cell(cell) for name, cell in cells.items()},
            "best_epoch": {name: _cell(cell) for name, cell in best.items() if cell.values},
            "missing": [name for name in whole if not cells.get(name, Cell({}, 0)).values],
            "mean_of_those_there": _mean_of_some(cells, whole),
            "published": values,
            "published_source": source,
            "verdicts": {name: judge(cells[name], values.get(name), doubts) for name in cells if name in values},
            "doubts": doubts,
            "search": {task: _search(searches[row.name, task], row) for task in tasks if (row.name, task) in searches},
            "learning_rates": {task: result["settings"]["learning_rate"] for task, result in first.items()},
            "trained_parameters": {task: result["trained_parameters"] for task, result in first.items()},
        }
    return summary


def _is(part: Mapping[str, Any], state: str) -> bool:
    return bool(part.get("state", "exact" if part["exact"] else "inexact") == state)


def _by_column(
    table: Table, own: Mapping[tuple[str, int], Mapping[str, Any]], columns: Sequence[str], best_epoch: bool
) -> dict[str, dict[int, float]]:
    """Scores by column and seed, of the last epoch, or of the best on validation where every epoch was scored."""
    found: dict[str, dict[int, float]] = {name: {} for name in columns}
    for (task, seed), result in own.items():
        epoch = result.get("best_epoch") or {}
        if best_epoch and "test" in epoch:
            found[column(task, "")][seed] = 100 * epoch["test"]
        elif not best_epoch:
            for metric, value in scores(table, result).items():
                found[column(task, metric)][seed] = value
    return found


def _mean_of_some(cells: Mapping[str, Cell], whole: Sequence[str]) -> float | None:
    """The mean over the tasks that are there, where some of those that a printed mean needs are not."""
    there = [mean(cells[name].values.values()) for name in whole if name in cells and cells[name].values]
    return round(mean(there), 4) if there and MEAN_OF_TASKS in cells and len(there) < len(whole) else None


def _doubts(row: Row, own: Mapping[tuple[str, int], Mapping[str, Any]], runs: Sequence[Run]) -> list[str]:
    """Why the numbers of a row do not compare with the published ones. Empty if they do."""
    parts = [part for result in own.values() for part in result["data"]]
    changed = sorted({word for run in runs for word in without(run.extra, NEUTRAL) if word.startswith("--")})
    precision = sorted({run.mixed_precision for run in runs} - {"no"})
    return [
        *([row.unlike] if row.unlike else []),
        *(["other images than the benchmark's"] if any(_is(part, "inexact") for part in parts) else []),
        *(["images encoded with loss"] if any(_is(part, "lossy") for part in parts) else []),
        *([f"settings changed by {', '.join(changed)}"] if changed else []),
        *([f"{', '.join(precision)} instead of float32"] if precision else []),
    ]


def _search(tried: Sequence[Searched], row: Row) -> dict[str, Any]:
    best = best_of(tried)
    return {
        "source": row.search.source,
        "tried": [{**one.choice, "validation": one.validation, "diverged": one.diverged} for one in tried],
        "best": best,
        "at_edge": best is not None and at_edge(tried, best),
    }


def _cell(cell: Cell) -> dict[str, Any]:
    values = {str(seed): round(value, 4) for seed, value in cell.values.items()}
    return {"text": cell.text(), "complete": cell.complete, "by_seed": values}
