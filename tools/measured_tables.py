# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The short tables of measured and of published accuracies in the README and docs/which_method.md.

`readme_tables.py` puts them into the pages; each is made from committed results.
"""

from collections.abc import Callable
from statistics import mean

import miniature_page
from paper import grids
from study_results import LAST, TASKS, Found, best_block, final_runs, finals, markdown, spread, the

GATED, HALF, RECOMMENDED = "gated_start_sample_best", "gated_start_sample_half_best", "zero_start_best"
LORA = "lora8_start_best"
SHOWN_ON = "eurosat"  # trained numbers, file and time depend on block and classes; those of this task are shown
CLASSES, FEATURES = 10, 2 * 384  # of that task; CLS beside the mean patch of a ViT-S
Cell = Callable[[str, Found], str]  # task and cells -> what the table shows


def _nearest(task: str, found: Found) -> str:
    return f"{100 * the(found, task, 'nearest')['test']:.1f}"


def _last_block(task: str, found: Found) -> str:
    return f"{100 * the(found, task, 'probe')['test'][LAST]:.1f}"


def _best_block(task: str, found: Found) -> str:
    return f"{100 * the(found, task, 'probe')['test'][best_block(task, found)]:.1f}"


def _row(row: str) -> Cell:
    return lambda task, found: spread(finals(task, row, found))


def _size(numbers: int) -> list[str]:
    """Trained numbers, and the file that holds them in float32."""
    size = 4 * numbers / 1000
    return [f"{numbers:,}", f"{size:.0f} kB" if size < 1000 else f"{size / 1000:.0f} MB"]


def _costs(row: str, found: Found) -> list[str]:
    """Trained numbers, file, and processor seconds of training."""
    runs = final_runs(SHOWN_ON, row, found)
    if not runs:
        return ["not run"] * 3
    seconds = mean(run["train_cpu_seconds"] for run in runs)
    return [*_size(runs[0]["trained_parameters"]), f"{seconds:.0f} s"]


def real(found: Found) -> str:
    """What each method reaches on the real backbone, and what it costs."""
    probe = [*_size(CLASSES * (FEATURES + 1)), "none: one pass"]
    trained = {
        "gated prompts, best block": GATED,
        "gated prompts from half-way on, best block": HALF,
        "zero-start prompts, best block": RECOMMENDED,
        "LoRA of rank 8, best block": LORA,
        "LoRA of rank 8, last block": "lora8",
        "full fine-tuning, last block": "full",
    }
    header = ["", *TASKS, "trained numbers", "file", "training"]
    rows = [
        ["linear probe, last block", *_cells(_last_block, found), *probe],
        ["linear probe, best block", *_cells(_best_block, found), *probe],
        *([name, *_cells(_row(row), found), *_costs(row, found)] for name, row in trained.items()),
    ]
    return markdown([header, *rows])


def ladder(found: Found) -> str:
    """The same backbone, from what trains nothing to what trains everything."""
    rows: dict[str, Cell] = {
        "nearest neighbours, last block": _nearest,
        "linear probe, last block": _last_block,
        "linear probe, best block": _best_block,
        "gated prompts, fitted head, best block": _row(GATED),
        "zero-start prompts, fitted head, best block": _row(RECOMMENDED),
        "LoRA of rank 8, fitted head, best block": _row(LORA),
        "LoRA of rank 8, last block": _row("lora8"),
        "full fine-tuning, last block": _row("full"),
    }
    return markdown([["", *TASKS], *([name, *_cells(cell, found)] for name, cell in rows.items())])


def _cells(cell: Cell, found: Found) -> list[str]:
    return [cell(task, found) for task in TASKS]


def miniature(found: Found) -> str:
    """The masked autoencoder of the miniature, from the linear head to full fine-tuning."""
    tasks = [task for backbone, task in miniature_page.pairs_with_results(found) if backbone == "mae"]
    rows = [["", *tasks]]
    for variant in ("linear", "shallow", "gated", "deep", "lora", "full"):
        cells = [miniature_page.cell("mae", task, variant, found) for task in tasks]
        rows.append([miniature_page.NAMES[variant], *cells])
    return markdown(rows)


def published() -> str:
    """The paper's averages, as published."""
    columns = {
        "MAE, FGVC": ("fgvc", "mae"),
        "MAE, VTAB-1k": ("vtab", "mae"),
        "MoCo v3, FGVC": ("fgvc", "moco"),
        "MoCo v3, VTAB-1k": ("vtab", "moco"),
    }
    names = {"shallow": "VPT-shallow", "deep": "VPT-deep", "gated": "gated prompts"}
    rows = [["published, ViT-B/16", *columns]]
    for row, name in names.items():
        values = [grids.published_row(*where, row)[0]["mean_of_tasks"] for where in columns.values()]
        rows.append([name, *(f"{value:.1f}" for value in values)])
    return markdown(rows)
