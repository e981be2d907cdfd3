# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The tables of docs/real.md, made from the cells.

python examples/real_backbone.py tables
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from gated_prompt import GatedPromptError

from . import endings, grid, images, miniature, miniature_runs, records
from .cells import Found, best_block, final_runs, finals, head_scores, markdown, spread
from .decisions import differences

PAGE = Path(__file__).parents[2] / "docs" / "real.md"
NAMES = {
    "shallow": "VPT-shallow",
    "deep": "VPT-deep",
    "gate_only": "gates only",
    "temperature_only": "temperatures only",
    "gated": "gated (the paper's)",
    "gated_rate": "gated, gates with their own rate",
    "gated_attentive": "gated, attentive head",
    "zero": "zero-start prompts",
    "lora8": "LoRA, rank 8",
    "full": "full fine-tuning",
    **{f"shallow_at_{k}": f"VPT-shallow from block {k}" for k in (2, 4, 6, 8, 10)},
    "shallow_start": "fitted head: VPT-shallow",
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
    "zero_start_half": "fitted head: zero-start prompts, from half-way on",
    "zero_start_100": "fitted head: zero-start prompts, 100 in each block",
    "zero_start_rate": "fitted head: zero-start prompts, gates with their own rate",
    "lora4_start": "fitted head: LoRA, rank 4",
    "lora8_start": "fitted head: LoRA, rank 8",
}
HEADS = {
    ("heads", "linear"): "linear head",
    ("standardised", "linear"): "linear head on standardised features",
    ("heads", "attentive"): "attentive head, 8 queries",
}


def label(row: str) -> str:
    """What a row of the grid is called."""
    return f"{NAMES[row.removesuffix('_best')]}, {'chosen' if grid.ROWS[row].best_block else 'last'} block"


def tasks_there(found: Found) -> list[str]:
    """The tasks whose frozen rows are complete."""
    return [
        task
        for task in images.TASKS
        if (task, "probe") in found and {best_block(task, found), grid.LAST} <= frozen_heads(task, found).keys()
    ]


def frozen_heads(task: str, found: Found) -> dict[int, dict[str, Any]]:
    """The trained heads by block."""
    return {cell["block"]: cell for (of, name), cell in found.items() if of == task and name.startswith("heads-block")}


def frozen(found: Found, what: str) -> str:
    """The rows that change nothing in the backbone."""
    tasks = tasks_there(found)
    chosen = {task: best_block(task, found) for task in tasks}
    rows = [["frozen backbone", *tasks], ["block chosen on val200", *(str(chosen[task]) for task in tasks)]]
    rows.append(["nearest neighbours, last block", *(f"{100 * found[task, 'nearest'][what]:.1f}" for task in tasks)])
    for label, block_of in (("last block", dict.fromkeys(tasks, grid.LAST)), ("chosen block", chosen)):
        cells = [f"{100 * found[task, 'probe'][what][block_of[task] - 1]:.1f}" for task in tasks]
        rows.append([f"logistic regression, {label}", *cells])
        for head, name in HEADS.items():
            values = [head_scores(task, block_of[task], head, what, found) for task in tasks]
            rows.append([f"{name}, {label}", *map(spread, values)])
    return markdown(rows)


def blocks(found: Found) -> str:
    """The logistic regression on each block: validation / test accuracy; the chosen block in bold."""
    rows = [["block", *map(str, range(1, grid.LAST + 1))]]
    for task in tasks_there(found):
        probe = found[task, "probe"]
        cells = [f"{100 * val:.1f} / {100 * test:.1f}" for val, test in zip(probe["val"], probe["test"], strict=True)]
        cells[best_block(task, found) - 1] = f"**{cells[best_block(task, found) - 1]}**"
        rows.append([task, *cells])
    return markdown(rows)


def trained(found: Found, what: str) -> str:
    """Every row that has been run after the chosen block, by task."""
    tasks = tasks_there(found)
    rows = [["", *(f"{task}, block {best_block(task, found)}" for task in tasks)]]
    for row, name in NAMES.items():
        values = [finals(task, f"{row}_best", found, what) if f"{row}_best" in grid.ROWS else [] for task in tasks]
        if any(values):
            rows.append([name, *map(spread, values)])
    probes = [found[task, "probe"][what][best_block(task, found) - 1] for task in tasks]
    rows.append(["logistic regression, frozen", *(f"{100 * value:.1f}" for value in probes)])
    return markdown(rows)


def trained_last(found: Found) -> str:
    """Every row that has been run after the last block of the task that rates are raced on."""
    rows = [[grid.RACED_ON, "validation", "test", "training, s"]]
    for row, name in NAMES.items():
        runs = final_runs(grid.RACED_ON, row, found) if row in grid.ROWS else []
        if runs:
            values = [spread([100 * run[what] for run in runs]) for what in ("val", "test")]
            rows.append([name, *values, f"{mean(run['train_cpu_seconds'] for run in runs):.0f}"])
    probe = found[grid.RACED_ON, "probe"]
    frozen_row = [f"{100 * probe[what][grid.LAST - 1]:.1f}" for what in ("val", "test")]
    rows.append(["logistic regression, frozen", *frozen_row, ""])
    return markdown(rows)


def rates(found: Found) -> str:
    """Which rates won the races, and what their losers reached."""
    rows = [["row", f"tried on {grid.RACED_ON}: validation accuracy after the race", "chosen"]]
    for row, spec in grid.ROWS.items():
        cells, won = grid.race(row, found) or [], grid.winner(row, found)
        if len(cells) < 2 or won is None:
            continue
        values = [cell.gate_rate if spec.gate_rates else cell.rate for cell in cells]
        tried = [
            f"{value:g}: {100 * found[grid.RACED_ON, cell.name]['val']:.1f}"
            for value, cell in zip(values, cells, strict=True)
        ]
        rows.append([label(row), ", ".join(tried), f"{values[cells.index(won)]:g}"])
    return markdown(rows)


def learned(found: Found) -> str:
    """Gates and temperatures of the gated rows after training, means over the seeds."""
    rows = [["task", "row", "gates of blocks 0, 1, ...", "temperatures"]]
    for task in tasks_there(found):
        for row, spec in grid.ROWS.items():
            if spec.method not in ("gated", "gate_only", "temperature_only"):
                continue
            runs = final_runs(task, row, found)
            if runs:
                rows.append(
                    [task, label(row), *(_means([run[what] for run in runs]) for what in ("gates", "temperatures"))]
                )
    return markdown(rows)


def _means(values: Sequence[Sequence[float]]) -> str:
    return " ".join(f"{mean(column):.2f}" for column in zip(*values, strict=True))


def starts(found: Found) -> str:
    """Validation accuracy of the refitted probe with untrained prompts in place, by start."""
    tasks = [task for task in tasks_there(found) if (task, "starts") in found]
    rows = [["prompts", "start", *tasks], ["none", "", *(f"{_chosen_val(task, found):.1f}" for task in tasks)]]
    for key in {key: None for task in tasks for key in found[task, "starts"]}:
        row, _, start = key.partition(" ")
        values = [found[task, "starts"].get(key, []) for task in tasks]
        where = "at every block" if row.startswith("deep") else "at block 0"
        rows.append([where, start, *(", ".join(f"{100 * value:.1f}" for value in seeds) for seeds in values)])
    return markdown(rows)


def _chosen_val(task: str, found: Found) -> float:
    return 100 * max(found[task, "probe"]["val"])


def cost(found: Found) -> str:
    """Seconds and megabytes of one training step."""
    steps = found["cost", "steps"]["steps"]
    rows = [
        [
            "row",
            "read after block",
            "ms per image and step",
            "MB kept for the backward pass, 20 images",
            "trained numbers",
        ]
    ]
    for name, step in steps.items():
        row, _, read = name.rpartition(" read")
        milliseconds = f"{1000 * step['seconds'] / 20:.1f}"
        rows.append([NAMES[row], read, milliseconds, f"{step['megabytes']:.0f}", f"{step['trained']:,}"])
    return markdown(rows)


def filled(page: str, found: Found) -> str:
    """The page with its generated parts made anew."""
    parts = {
        "frozen": frozen(found, "test"),
        "frozen, validation": frozen(found, "val"),
        "blocks": blocks(found),
        "test": trained(found, "test"),
        "validation": trained(found, "val"),
        "last block": trained_last(found),
        "endings": endings.table(found),
        "rates": rates(found),
        "differences": differences(found),
        "learned": learned(found),
        "starts": starts(found),
    }
    if any(task == "miniature" for task, _ in found):
        parts["miniature"] = miniature.table(found)
        parts["miniature, trained"] = miniature_runs.table(found)
        parts["together"] = miniature_runs.together(found)
    if ("cost", "steps") in found:
        parts["cost"] = cost(found)
    for name, text in parts.items():
        start, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, there, rest = page.partition(start)
        if not there:
            raise GatedPromptError(f"{PAGE.name} has no place for the generated part {name!r}")
        page = f"{before}{start}\n{text.strip()}\n\n{end}{rest.partition(end)[2]}"
    return page


def main(args: Namespace) -> None:
    """Write the page's generated parts."""
    found = records.read(args.results)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
