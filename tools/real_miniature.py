# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The real backbone's recipe on the miniature's small backbones and tasks: its tables in docs/appendix/real_tables.md.

Rates, epochs and batches are those of the real backbone: a recipe has to do without a race for each task.
"""

from itertools import product
from statistics import mean
from typing import Any

from real_endings import ENDINGS, ROWS, probe_of
from study.miniature import BACKBONES
from study.tasks import MINIATURE as TASKS
from study.tasks import REAL
from study_results import LAST, SEEDS, Found, final_runs, markdown, of_kind, the

TRAINED = ("gated_start_sample_half_best", "zero_start_best", "lora8_start_best")
ENDS = ("last epoch", "best epoch, or the probe")
GROUPS = ("real backbone", "miniature", "all")


HEADS = {
    "linear": "linear head",
    "standardised": "linear head on standardised features",
    "attentive": "attentive head, 8 queries",
}


def frozen(found: Found) -> str:
    """Validation / test accuracy of the frozen rows by backbone and task. In brackets the chosen block."""
    rows = [["backbone, task", "probe, last block", "probe, chosen block", *HEADS.values()]]
    for backbone, task in product(BACKBONES, TASKS):
        for cell in of_kind(found, f"{backbone}-{task}", "frozen"):
            pairs = [(cell["val"][k], cell["test"][k]) for k in (LAST, cell["chosen_block"])]
            last, chosen = map(text, pairs)
            heads = [text((mean(cell[head]["val"]), mean(cell[head]["test"]))) for head in HEADS]
            rows.append([f"{backbone}, {task}", last, f"{chosen} ({cell['chosen_block']})", *heads])
    return markdown(rows)


def trained(found: Found) -> str:
    """Validation / test accuracy by backbone and task, means over the seeds. Below, their mean."""
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
        count = "" if seeds == len(SEEDS) else f" ({seeds})"
        rows.append([f"{backbone}, {task}{count}", *map(text, complete[-1])])
    if not complete:
        return "Not run.\n"
    rows.append(["mean", *(text(_mean(column)) for column in zip(*complete, strict=True))])
    return markdown(rows)


def together(found: Found) -> str:
    """Means over the tasks of the real backbone, those of the miniature, and all of them, each task counted once."""
    small = [f"{backbone}-{task}" for backbone, task in product(BACKBONES, TASKS)]
    groups = (list(REAL), small, [*REAL, *small])
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
    if task in REAL:
        return probe_of(task, found)
    cell = the(found, task, "frozen")
    return cell["val"][cell["chosen_block"]], cell["test"][cell["chosen_block"]]


def text(pair: tuple[float, float]) -> str:
    """Shares as percent: '91.2 / 90.8'."""
    return " / ".join(f"{100 * value:.1f}" for value in pair)


def _mean(pairs: Any) -> tuple[float, float]:
    val, test = zip(*pairs, strict=True)
    return mean(val), mean(test)
