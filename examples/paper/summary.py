# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The results of a table's runs as one JSON object and as Markdown, with what is needed to judge them."""

from collections.abc import Mapping, Sequence
from typing import Any

from .averages import AVERAGES, MEAN_OF_GROUPS, Cell, averages, plain, with_mean_of_groups
from .grids import Row, Table, column, published, published_row, scores
from .jobs import Run

Finals = Mapping[tuple[str, str, int], Run]  # by row, task and seed


def summarize(
    name: str,
    table: Table,
    kind: str,
    rows: Sequence[Row],
    tasks: Sequence[str],
    seeds: Sequence[int],
    finals: Finals,
    records: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Scores, averages and published numbers of each row, ready for JSON; `complete`: whether every run is there."""
    found = {key: records[run.key] for key, run in finals.items() if run.key in records}
    shown = [column(task, metric) for task in tasks for metric in table.metrics]
    whole = [column(task, metric) for task in table.tasks for metric in table.metrics]
    summary: dict[str, Any] = {
        "table": name,
        "title": table.title,
        "backbone_kind": kind,
        "seeds": list(seeds),
        "complete": len(found) == len(rows) * len(tasks) * len(seeds),
        "rows": {},
        "inexact_data": sorted(
            {
                f"{part['dataset']} {part['split']}: {part['note']}"
                for result in found.values()
                for part in result["data"]
                if not part["exact"]
            }
        ),
        "versions": next((result["versions"] for result in found.values()), {}),
        "devices": sorted({result["device"] for result in found.values()}),
        "published_in": published()["source"],
    }
    for row in rows:
        by_column: dict[str, dict[int, float]] = {name: {} for name in whole}
        for (row_name, task, seed), result in found.items():
            if row_name == row.name:
                for metric, value in scores(table, result).items():
                    by_column[column(task, metric)][seed] = value
        cells = {name: plain(by_column, name, seeds) for name in shown} | averages(name, by_column, whole, seeds)
        values, source = published_row(name, kind, row.name)
        first = {task: found.get((row.name, task, seed)) for task in tasks for seed in reversed(seeds)}
        summary["rows"][row.name] = {
            "method": row.method,
            "scores": {name: _cell(cell) for name, cell in cells.items()},
            "published": with_mean_of_groups(values),
            "published_source": source,
            "learning_rates": {task: result["settings"]["learning_rate"] for task, result in first.items() if result},
            "trained_parameters": {task: result["trained_parameters"] for task, result in first.items() if result},
        }
    return summary


def _cell(cell: Cell) -> dict[str, Any]:
    values = {str(seed): round(value, 4) for seed, value in cell.values.items()}
    return {"text": cell.text(), "complete": cell.complete, "by_seed": values}


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The table, and below it the notes needed to read it."""
    rows = summary["rows"]
    seeds = ", ".join(map(str, summary["seeds"]))
    notes = [f"Mean ± standard deviation over the seeds {seeds}; one run each, last epoch."]
    if not summary["complete"]:
        notes.append("**This table is incomplete: some of its runs have not been made.**")
    if any(MEAN_OF_GROUPS in content["scores"] for content in rows.values()):
        notes.append(
            "Two averages of VTAB-1k are in use: the mean of the 19 tasks, which is the paper's, and the mean of the "
            "three groups."
        )
    notes += [f"Not the benchmark's own images: {note}" for note in summary["inexact_data"]]
    sources = dict.fromkeys(content["published_source"] for content in rows.values() if content["published_source"])
    if sources:
        notes.append(f"In brackets: published numbers ({'; '.join(sources)}). {summary['published_in']}")
    for row, content in rows.items():
        rates = ", ".join(f"{task} {rate:g}" for task, rate in content["learning_rates"].items())
        if rates:
            notes.append(f"Learning rates of {row}: {rates}.")
    settings = summary["settings"]
    notes.append(f"Backbone: {settings['backbone']} ({summary['backbone_kind']}).")
    notes.append(
        f"Made on {', '.join(summary['devices']) or 'no device yet'} with:\n\n```sh\n{settings['command']}\n```"
    )
    return f"# {summary['title']}\n\n{_table(rows)}\n" + "\n\n".join(notes) + "\n"


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each task and average and one column for each method; turned where there are more methods."""
    lines = list(next(iter(rows.values()))["scores"])
    cells = [["", *rows]]
    for line in lines:
        texts = []
        for content in rows.values():
            beside = f" [{content['published'][line]:.2f}]" if line in content["published"] else ""
            texts.append(content["scores"][line]["text"] + beside)
        cells.append([line.replace("_", " ") if line in AVERAGES else line, *texts])
    if len(rows) > len(lines):
        cells = [list(turned) for turned in zip(*cells, strict=True)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)
