# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The generated parts of docs/appendix/real_tables.md, from the committed results.

python tools/real_page.py
"""

from collections.abc import Sequence
from statistics import mean

import real_endings
import real_miniature
from paper.markdown import fill
from real_decisions import differences
from study_results import (
    DOCS,
    LAST,
    RACED_ON,
    TASKS,
    Found,
    best_block,
    final_runs,
    finals,
    head_scores,
    markdown,
    of_kind,
    rate_race,
    read,
    spread,
    the,
)

PAGE = DOCS / "appendix" / "real_tables.md"
NAMES = {
    "shallow": "VPT-shallow",
    "deep": "VPT-deep",
    "gate_only": "gates only",
    "temperature_only": "temperatures only",
    "gated": "gated (the paper's)",
    "gated_attentive": "gated, attentive head",
    "zero": "zero-start prompts",
    "lora8": "LoRA, rank 8",
    "full": "full fine-tuning",
    **{f"shallow_at_{k}": f"VPT-shallow from block {k}" for k in (2, 4, 6)},
    "deep_start": "fitted head: VPT-deep",
    "gated_start": "fitted head: gated",
    "gated_start_sample": 'fitted head: gated, "sample" start',
    "gated_start_sample_half": 'fitted head: gated, "sample" start, prompts from half-way on',
    "gated_start_sample_half_1": 'fitted head: gated, "sample" start, one prompt from half-way on',
    "gated_start_sample_half_3": 'fitted head: gated, "sample" start, three prompts from half-way on',
    "deep_start_sample": 'fitted head: VPT-deep, "sample" start',
    "deep_start_propagated": "fitted head: VPT-deep, propagated start",
    "gated_start_rate": 'fitted head: gated, "sample" start, gates with their own rate',
    "zero_start": "fitted head: zero-start prompts",
    "zero_start_sample": 'fitted head: zero-start prompts, "sample" start',
    "lora4_start": "fitted head: LoRA, rank 4",
    "lora8_start": "fitted head: LoRA, rank 8",
}
HEADS = {
    ("heads", "linear"): "linear head",
    ("standardised", "linear"): "linear head on standardised features",
    ("heads", "attentive"): "attentive head, 8 queries",
}


def label(row: str) -> str:
    """What a row is called; rows whose names end in "_best" were read after the chosen block."""
    return f"{NAMES[row.removesuffix('_best')]}, {'chosen' if row.endswith('_best') else 'last'} block"


def tasks_there(found: Found) -> list[str]:
    """The tasks whose frozen rows are complete."""
    return [
        task
        for task in TASKS
        if of_kind(found, task, "probe")
        and {best_block(task, found), LAST} <= {heads["block"] for heads in of_kind(found, task, "heads")}
    ]


def frozen(found: Found, what: str) -> str:
    """The rows that change nothing in the backbone."""
    tasks = tasks_there(found)
    chosen = {task: best_block(task, found) for task in tasks}
    rows = [["frozen backbone", *tasks], ["block chosen on val200", *(str(chosen[task]) for task in tasks)]]
    rows.append(
        ["nearest neighbours, last block", *(f"{100 * the(found, task, 'nearest')[what]:.1f}" for task in tasks)]
    )
    for label, block_of in (("last block", dict.fromkeys(tasks, LAST)), ("chosen block", chosen)):
        cells = [f"{100 * the(found, task, 'probe')[what][block_of[task]]:.1f}" for task in tasks]
        rows.append([f"logistic regression, {label}", *cells])
        for head, name in HEADS.items():
            values = [head_scores(task, block_of[task], head, what, found) for task in tasks]
            rows.append([f"{name}, {label}", *map(spread, values)])
    return markdown(rows)


def blocks(found: Found) -> str:
    """The logistic regression on each block: validation / test accuracy. The chosen block in bold."""
    rows = [["block", *map(str, range(LAST + 1))]]
    for task in tasks_there(found):
        probe = the(found, task, "probe")
        cells = [f"{100 * val:.1f} / {100 * test:.1f}" for val, test in zip(probe["val"], probe["test"], strict=True)]
        cells[probe["chosen_block"]] = f"**{cells[probe['chosen_block']]}**"
        rows.append([task, *cells])
    return markdown(rows)


def trained(found: Found, what: str) -> str:
    """Every row that has been run after the chosen block, by task."""
    tasks = tasks_there(found)
    rows = [["", *(f"{task}, block {best_block(task, found)}" for task in tasks)]]
    for row, name in NAMES.items():
        values = [finals(task, f"{row}_best", found, what) for task in tasks]
        if any(values):
            rows.append([name, *map(spread, values)])
    probes = [the(found, task, "probe")[what][best_block(task, found)] for task in tasks]
    rows.append(["logistic regression, frozen", *(f"{100 * value:.1f}" for value in probes)])
    return markdown(rows)


def trained_last(found: Found) -> str:
    """Every row that has been run after the last block of the task that rates are raced on."""
    rows = [[RACED_ON, "validation", "test", "training, s"]]
    for row, name in NAMES.items():
        runs = final_runs(RACED_ON, row, found)
        if runs:
            values = [spread([100 * run[what] for run in runs]) for what in ("val", "test")]
            rows.append([name, *values, f"{mean(run['train_cpu_seconds'] for run in runs):.0f}"])
    probe = the(found, RACED_ON, "probe")
    frozen_row = [f"{100 * probe[what][LAST]:.1f}" for what in ("val", "test")]
    rows.append(["logistic regression, frozen", *frozen_row, ""])
    return markdown(rows)


def rates(found: Found) -> str:
    """Which rates won the races, and what their losers reached."""
    rows = [["row", f"tried on {RACED_ON}: validation accuracy after the race", "chosen"]]
    for row in (*NAMES, *(f"{name}_best" for name in NAMES)):
        runs = rate_race(row, found)
        if len(runs) < 2:
            continue
        tried = [f"{run['rate']:g}: {100 * run['val']:.1f}" for run in runs]
        won = max(runs, key=lambda run: (run["val"], -run["val_loss"]))
        rows.append([label(row), ", ".join(tried), f"{won['rate']:g}"])
    return markdown(rows)


def learned(found: Found) -> str:
    """Gates and temperatures of the gated rows after training, means over the seeds."""
    rows = [["task", "row", "gates of blocks 0, 1, ...", "temperatures"]]
    for task in tasks_there(found):
        for row in (*NAMES, *(f"{name}_best" for name in NAMES)):
            runs = final_runs(task, row, found)
            if runs and "temperatures" in runs[0]:
                means = [_means([run[what] for run in runs]) for what in ("gates", "temperatures")]
                rows.append([task, label(row), *means])
    return markdown(rows)


def _means(values: Sequence[Sequence[float]]) -> str:
    return " ".join(f"{mean(column):.2f}" for column in zip(*values, strict=True))


def starts(found: Found) -> str:
    """Validation accuracy of the refitted probe with untrained prompts in place, by start."""
    tasks = [task for task in tasks_there(found) if of_kind(found, task, "starts")]
    rows = [["prompts", "start", *tasks], ["none", "", *(f"{_chosen_val(task, found):.1f}" for task in tasks)]]
    for key in {key: None for task in tasks for key in the(found, task, "starts")["val"]}:
        row, _, start = key.partition(" ")
        values = [the(found, task, "starts")["val"].get(key, []) for task in tasks]
        where = "at every block" if row.startswith("deep") else "at block 0"
        rows.append([where, start, *(", ".join(f"{100 * value:.1f}" for value in seeds) for seeds in values)])
    return markdown(rows)


def _chosen_val(task: str, found: Found) -> float:
    return 100 * max(the(found, task, "probe")["val"])


def cost(found: Found) -> str:
    """Seconds and megabytes of one training step."""
    header = ["row", "read after block", "ms per image and step", "MB kept for the backward pass, 20 images"]
    rows = [[*header, "trainable parameters"]]
    for step in of_kind(found, "cost", "step"):
        milliseconds = f"{1000 * step['seconds'] / 20:.1f}"
        rows.append([NAMES[step["row"]], str(step["read_from"]), milliseconds, f"{step['megabytes']:.0f}"])
        rows[-1].append(f"{step['trained']:,}")
    return markdown(rows)


def new_page(page: str, found: Found) -> str:
    """docs/appendix/real_tables.md with its generated parts renewed."""
    return fill(
        page,
        {
            "frozen": frozen(found, "test"),
            "frozen, validation": frozen(found, "val"),
            "blocks": blocks(found),
            "test": trained(found, "test"),
            "validation": trained(found, "val"),
            "last block": trained_last(found),
            "endings": real_endings.table(found),
            "rates": rates(found),
            "differences": differences(found),
            "learned": learned(found),
            "starts": starts(found),
            "miniature": real_miniature.frozen(found),
            "miniature, trained": real_miniature.trained(found),
            "together": real_miniature.together(found),
            "cost": cost(found),
        },
    )


if __name__ == "__main__":
    PAGE.write_text(new_page(PAGE.read_text(encoding="utf-8"), read("real")), encoding="utf-8")
