# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The generated parts of docs/appendix/race.md, from the committed results.

python tools/race_page.py
"""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from paper.markdown import fill
from study import claims, methods, records
from study.draws import DRAWS
from study_results import DOCS, EXAMPLES, TASKS, markdown

PAGE = DOCS / "appendix" / "race.md"
FROZEN = {
    "nearest neighbours": "nearest neighbours, last block",
    "last block": "probe of the last block",
    "best block": "probe of the best block",
    "block set": "probe of the block set",
}
TRAINED = {
    "zero_start/10_prompts": "zero-start prompts",
    "gated/10_prompts": "gated prompts",
    "vpt_deep/10_prompts": "VPT-deep",
    "vpt_shallow/10_prompts": "VPT-shallow",
    "lora/rank8": "LoRA, rank 8",
    "lora/rank8_one_block": "LoRA, rank 8, on the best block",
    "dora/rank8": "DoRA, rank 8",
    "ia3/default": "IA3",
    "oft/block32": "OFT, blocks of 32",
    "vera/rank256": "VeRA, rank 256",
    "ln_tuning/default": "LayerNorm tuning",
    "full/upper_half": "full fine-tuning, upper half",
}
Rows = Mapping[str, list[dict[str, Any]]]  # records by what the row is called


def read() -> dict[str, list[dict[str, Any]]]:
    """The records of the race by row."""
    results = EXAMPLES / "study" / "method_comparison" / "results"
    frozen = records.read(results / "frozen--probes.jsonl")
    found = {name: [one for one in frozen if one["row"] == row] for row, name in FROZEN.items()}
    for experiment, name in TRAINED.items():
        found[name] = records.read(results / methods.experiments()[experiment].results)
    return found


def percent(runs: Sequence[Mapping[str, Any]], what: str = "test") -> str:
    """'79.4 ± 0.3' over the draws. In brackets how many there are, if fewer than all; 'not run'."""
    if not runs:
        return "not run"
    values = [100 * run[what] for run in runs]
    text = f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
    return text if len(values) == len(DRAWS) else f"{text} ({len(values)})"


def of_task(runs: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """The runs of a task, by draw."""
    return sorted((run for run in runs if run["task"] == task), key=lambda run: run["draw"])


def mean_of_tasks(runs: list[dict[str, Any]], what: str) -> float | None:
    """Percent, each task counted once. None unless all tasks have all draws."""
    by_task = [[100 * run[what] for run in of_task(runs, task)] for task in TASKS]
    return mean(map(mean, by_task)) if all(len(values) == len(DRAWS) for values in by_task) else None


def accuracies(found: Rows) -> str:
    """Test accuracy by row and task, fitted on all labelled images."""
    rows = [["", *TASKS, "mean"]]
    for name, runs in found.items():
        average = mean_of_tasks(runs, "test")
        cells = [percent(of_task(runs, task)) for task in TASKS]
        rows.append([name, *cells, "" if average is None else f"{average:.1f}"])
    return markdown(rows)


def refit(found: Rows) -> str:
    """What fitting again on all labelled images brings, in points of test accuracy, where a row has run."""
    rows = [["", *TASKS, "mean"]]
    for name, runs in found.items():
        gains = []
        for task in TASKS:
            pairs = [100 * (run["test"] - run["test_one_fold"]) for run in of_task(runs, task)]
            gains.append(f"{mean(pairs):+.1f}" if pairs else "not run")
        pair = [mean_of_tasks(runs, what) for what in ("test", "test_one_fold")]
        average = "" if pair[0] is None or pair[1] is None else f"{pair[0] - pair[1]:+.1f}"
        if runs:
            rows.append([name, *gains, average])
    return markdown(rows)


def estimates(found: Rows) -> str:
    """Accuracy out of fold and on the test images of the block set, and the blocks of each draw."""
    rows = [["task", "out of fold", "test", "blocks of each draw"]]
    for task in TASKS:
        runs = of_task(found[FROZEN["block set"]], task)
        if runs:
            blocks = "; ".join(", ".join(map(str, run["blocks"])) for run in runs)
            rows.append([task, percent(runs, "out_of_fold"), percent(runs), blocks])
    return markdown(rows)


def promises() -> str:
    """How often the interval of small tasks holds the test accuracy, by data set and in all."""
    runs = records.read(claims.PROMISE)
    rows = [["", "tasks", "interval holds", "out of fold", "test", "labelled images"]]
    for name in (*TASKS, "all"):
        own = [run for run in runs if name in (run["task"], "all")]
        sizes = [run["labelled"] for run in own]
        shares = (f"{100 * mean(run[what] for run in own):.1f}" for what in ("promised", "test"))
        rows.append(
            [name, str(len(own)), str(sum(run["holds"] for run in own)), *shares, f"{min(sizes)} to {max(sizes)}"]
        )
    return markdown(rows)


def held_back(found: Rows) -> str:
    """Accuracy on the held-back fold before and after training, where a trained row has run."""
    rows = [["", "task, draw", "rate", "before", "after", "test of the frozen block set", "test"]]
    frozen = {(run["task"], run["draw"]): run["test"] for run in found[FROZEN["block set"]]}
    for name in TRAINED.values():
        for run in found[name]:
            where = (run["task"], run["draw"])
            shares = (run["start"], run["held"], frozen[where], run["test"])
            rows.append([name, f"{where[0]}, {where[1]}", f"{run['rate']:g}", *(f"{100 * v:.1f}" for v in shares)])
    return markdown(rows) if len(rows) > 1 else "Not run.\n"


def cost(found: Rows) -> str:
    """What a row costs on the first draw of the first task on which it has run."""
    rows = [["", "task", "trainable parameters", "file, kB", "training, s", "kept for a step, MB", "ms per image"]]
    for name, runs in found.items():
        if runs:
            run = runs[0]
            size = [f"{run['num_trainable_params']:,}", f"{run['file_size'] / 1000:,.0f}"]
            trained = ("train_cpu_seconds", "kept_megabytes", "inference_milliseconds")
            rows.append([name, run["task"], *size, *(str(run.get(key, "")) for key in trained)])
    return markdown(rows)


def new_page(page: str, found: Rows) -> str:
    """docs/appendix/race.md with its generated parts renewed."""
    parts = {
        "accuracies": accuracies(found),
        "refit": refit(found),
        "estimates": estimates(found),
        "promises": promises(),
        "held back": held_back(found),
        "cost": cost(found),
    }
    return fill(page, parts)


if __name__ == "__main__":
    PAGE.write_text(new_page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
