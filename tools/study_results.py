# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The committed results of the studies, and numbers out of them, for tables, figures and tests."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))

from study import records
from study.tasks import REAL

TASKS = REAL
RESULTS = EXAMPLES / "study" / "results"
DOCS = EXAMPLES.parent / "docs"
SEEDS = (0, 1, 2)
LAST = 11  # the last block, counted from 0
EPOCHS, RACE_EPOCHS = 10, 3  # of final runs on the real backbone, and of runs that choose a rate
RACED_ON = "eurosat"
Found = Mapping[str, list[dict[str, Any]]]  # records by the name of their file: a task, or a backbone and a task


def read(study: str) -> dict[str, list[dict[str, Any]]]:
    """The records of "real" or "miniature"."""
    return {file.stem: records.read(file) for file in sorted((RESULTS / study).glob("*.jsonl"))}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def of_kind(found: Found, task: str, kind: str) -> list[dict[str, Any]]:
    """The records of one kind on a task."""
    return [record for record in found.get(task, []) if record["kind"] == kind]


def the(found: Found, task: str, kind: str) -> dict[str, Any]:
    """The only record of a kind on a task."""
    (record,) = of_kind(found, task, kind)
    return record


def final_runs(task: str, row: str, found: Found) -> list[dict[str, Any]]:
    """The final runs of a row that are there, by seed."""
    runs = [run for run in of_kind(found, task, "run") if run["row"] == row and run["epochs"] == EPOCHS]
    return sorted(runs, key=lambda run: run["seed"])


def finals(task: str, row: str, found: Found, what: str = "test") -> list[float]:
    """Percent of the final runs of a row that are there, by seed."""
    return [100 * run[what] for run in final_runs(task, row, found)]


def rate_race(row: str, found: Found) -> list[dict[str, Any]]:
    """The runs among which the rate of a row was chosen, by rate. Those with one rate had no choice."""
    runs = [run for run in of_kind(found, RACED_ON, "run") if run["row"] == row and run["epochs"] == RACE_EPOCHS]
    return sorted(runs, key=lambda run: (run["rate"], run["gate_rate"] or 0))


def spread(values: Sequence[float]) -> str:
    """'91.2 ± 0.3'. One seed '91.2 (1)', two '91.2 ± 0.3 (2)'; none: 'not run'."""
    if not values:
        return "not run"
    text = f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
    return text if len(values) == len(SEEDS) else f"{text} ({len(values)})"


def best_block(task: str, found: Found) -> int:
    """The block that the probe chose on the validation images, counted from 0."""
    return int(the(found, task, "probe")["chosen_block"])


def head_scores(task: str, block: int, head: tuple[str, str], part: str, found: Found) -> list[float]:
    """Percent by seed of a head that was trained on the frozen features of a block."""
    kind, name = head
    cells = [cell for cell in of_kind(found, task, kind) if cell["block"] == block]
    return [100 * value for value in cells[0][name][part]] if cells else []
