# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The results of a table's runs as one JSON object, with what is needed to judge them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .averages import MEAN_OF_TASKS, Cell, averages, judge, plain, with_mean_of_groups
from .grids import Table, column, published, published_row, scores
from .jobs import NEUTRAL, Run, without
from .presets import Choice, Row

Finals = Mapping[tuple[str, str, int], Run]  # by row, task and seed
Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Searched:
    """One setting of a search: its validation accuracy in percent, None where it diverged or was not run."""

    choice: Choice
    validation: float | None
    diverged: bool = False


def best_of(tried: Sequence[Searched]) -> Choice | None:
    """The best choice of a complete search, of equals the first (the smaller rate). None where all diverged.

    A choice that was not run is missing from a complete search: then there is no best one.
    """
    if any(one.validation is None and not one.diverged for one in tried):
        return None
    ended = [one for one in tried if one.validation is not None]
    return max(ended, key=lambda one: one.validation or 0.0).choice if ended else None


def at_edge(tried: Sequence[Searched], best: Choice) -> bool:
    """Whether the best learning rate is the smallest or largest of several that were tried."""
    rates = sorted({one.choice["learning_rate"] for one in tried})
    return len(rates) > 1 and best["learning_rate"] in (rates[0], rates[-1])


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
    """Why the numbers of a row do not compare with the published ones. Empty where they do."""
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
