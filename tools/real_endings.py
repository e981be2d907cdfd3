# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""How a run from a fitted head should end: after its last epoch, or at its best one.

"Best epoch, or the probe" keeps the frozen probe unless the best epoch beats it on the validation images. It decides
on validation alone, as `gated-prompt train` does.
"""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from study_results import TASKS, Found, best_block, final_runs, markdown, of_kind, spread, the

Ending = Callable[[dict[str, Any], tuple[float, float]], tuple[float, float]]  # cell, probe -> validation, test
ROWS = {
    "gated_start_sample_best": 'gated, "sample" start',
    "gated_start_sample_half_best": 'gated, "sample" start, from half-way on',
    "deep_start_sample_best": 'VPT-deep, "sample" start',
    "zero_start_best": "zero-start prompts",
    "lora8_start_best": "LoRA, rank 8",
}


def _best_epoch(cell: dict[str, Any], _probe: tuple[float, float]) -> tuple[float, float]:
    return cell["best_epoch"]["val"], cell["best_epoch"]["test"]


def _recommended(cell: dict[str, Any], probe: tuple[float, float]) -> tuple[float, float]:
    return max(probe, _best_epoch(cell, probe), key=lambda scores: scores[0])  # the probe comes first among equals


ENDINGS: dict[str, Ending] = {
    "last epoch": lambda cell, _: (cell["val"], cell["test"]),
    "best epoch": _best_epoch,
    "best epoch, or the probe": _recommended,
}


def probe_of(task: str, found: Found) -> tuple[float, float]:
    """Validation and test accuracy of the frozen probe on the chosen block."""
    block, probe = best_block(task, found), the(found, task, "probe")
    return probe["val"][block], probe["test"][block]


def ended(task: str, row: str, ending: str, found: Found) -> list[tuple[float, float]]:
    """Validation and test accuracy in percent of the seeds that have run, with this ending."""
    runs = final_runs(task, row, found)
    scores = [ENDINGS[ending](run, probe_of(task, found)) for run in runs if "best_epoch" in run]
    return [(100 * val, 100 * test) for val, test in scores]


def table(found: Found) -> str:
    """Validation / test accuracy of each ending by task, and their mean over the tasks if all of them have run."""
    rows = [["", "end", *TASKS, "mean"]]
    probes = [probe_of(task, found) for task in TASKS if of_kind(found, task, "probe")]
    rows.append(["probe of the chosen block, frozen", "", *(f"{100 * v:.1f} / {100 * t:.1f}" for v, t in probes)])
    rows[-1].append(" / ".join(f"{100 * mean(column):.1f}" for column in zip(*probes, strict=True)))
    for row, name in ROWS.items():
        for ending in ENDINGS:
            scores = [ended(task, row, ending, found) for task in TASKS]
            if any(scores):
                rows.append([name, ending, *map(_text, scores), _mean(scores)])
    return markdown(rows)


def _text(scores: Sequence[tuple[float, float]]) -> str:
    if not scores:
        return "not run"
    val, test = zip(*scores, strict=True)
    return f"{mean(val):.1f} / {spread(test)}"


def _mean(scores: Sequence[Sequence[tuple[float, float]]]) -> str:
    if not all(scores):
        return "not run"
    tasks = [[mean(column) for column in zip(*task, strict=True)] for task in scores]
    return " / ".join(f"{mean(column):.1f}" for column in zip(*tasks, strict=True))
