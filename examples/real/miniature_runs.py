# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The rows that decide, trained on the miniature's small backbones, on the block that the probe chooses there.

Rates, epochs and batches are those of the real backbone: a recipe has to do without a race for each task. All is
computed in float32: the MAE's features hardly vary beside their mean, and bfloat16 would round their differences away.
"""

from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from miniature.data import TASKS, MiniTask
from miniature.grid import BACKBONES

from . import grid, images, probes
from .cells import Found, final_runs, markdown
from .endings import ENDINGS, ROWS, probe_of
from .features import head_input
from .images import Part, Task
from .training import Bench, execute

TRAINED = ("gated_start_sample_half_best", "zero_start_best", "lora8_start_best")
ENDS = ("last epoch", "best epoch, or the probe")
GROUPS = ("real backbone", "miniature", "all")


class Prepared(Part):
    """Pixels that are normalized already."""

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        return self.pixels[index]


def train(
    name: str,
    backbone: Path,
    task: MiniTask,
    frozen: dict[str, Any],
    tokens: dict[str, torch.Tensor],
    cell: grid.Cell,
) -> dict[str, Any]:
    """One run of a row; `frozen` is the record of the frozen rows, `tokens` those of its chosen block by part."""
    splits = {part: (head_input(tokens[part]).double().numpy(), task.parts[part][1].numpy()) for part in tokens}
    strength, _ = probes.choose_strength(splits["train"], splits["val"])
    parts: dict[str, Part] = {part: Prepared(*values) for part, values in task.parts.items()}
    task_of_cell = Task(name, parts, len(task.class_names))
    block, rate = frozen["chosen_block"], frozen["linear"]["rate"]
    return execute(cell, Bench(task_of_cell, backbone, block, rate, strength, in_bfloat16=False))


def table(found: Found) -> str:
    """Validation / test accuracy by backbone and task, means over the seeds; below, their mean."""
    rows = [["backbone, task", "probe, chosen block", *(f"{ROWS[row]}: {end}" for row, end in product(TRAINED, ENDS))]]
    complete: list[list[tuple[float, float]]] = []
    for backbone, task in product(BACKBONES, TASKS):
        name = f"{backbone}-{task}"
        runs = {row: final_runs(name, row, found) for row in TRAINED}
        if not all(runs.values()):
            continue
        probe = _probe(name, found)
        scores = [[ENDINGS[end](run, probe) for run in runs[row]] for row, end in product(TRAINED, ENDS)]
        complete.append([probe, *(_mean(pairs) for pairs in scores)])
        seeds = min(map(len, runs.values()))
        count = "" if seeds == len(grid.SEEDS) else f" ({seeds})"
        rows.append([f"{backbone}, {task}{count}", *map(text, complete[-1])])
    if not complete:
        return "Not run.\n"
    rows.append(["mean", *(text(_mean(column)) for column in zip(*complete, strict=True))])
    return markdown(rows)


def together(found: Found) -> str:
    """Means over the tasks of the real backbone, those of the miniature, and all of them, each task counted once."""
    small = [f"{backbone}-{task}" for backbone, task in product(BACKBONES, TASKS)]
    groups = (list(images.TASKS), small, [*images.TASKS, *small])
    if not all(final_runs(task, row, found) for task, row in product(groups[-1], TRAINED)):
        return "Not run.\n"
    probes = {task: _probe(task, found) for task in groups[-1]}
    rows = [["", *(f"{name}, {len(tasks)} tasks" for name, tasks in zip(GROUPS, groups, strict=True))]]
    rows.append(["probe of the chosen block", *(text(_mean(probes[task] for task in tasks)) for tasks in groups)])
    for row, end in product(TRAINED, ENDS):
        scores = {
            task: _mean([ENDINGS[end](run, probes[task]) for run in final_runs(task, row, found)])
            for task in groups[-1]
        }
        rows.append([f"{ROWS[row]}: {end}", *(text(_mean(scores[task] for task in tasks)) for tasks in groups)])
    return markdown(rows)


def _probe(task: str, found: Found) -> tuple[float, float]:
    """Validation and test accuracy of the chosen block's probe."""
    if task in images.TASKS:
        return probe_of(task, found)
    frozen = found["miniature", task]
    block = frozen["chosen_block"] - 1
    return frozen["val"][block], frozen["test"][block]


def text(pair: tuple[float, float]) -> str:
    """Shares as percent: '91.2 / 90.8'."""
    return " / ".join(f"{100 * value:.1f}" for value in pair)


def _mean(pairs: Any) -> tuple[float, float]:
    val, test = zip(*pairs, strict=True)
    return mean(val), mean(test)
