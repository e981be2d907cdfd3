# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The short tables of measured and of published accuracies in the README and docs/which_method.md.

`readme_tables.py` puts them into the pages. Each is made from committed results.
"""

from collections.abc import Callable

import miniature_page
import race_page
from paper import grids
from study_results import LAST, TASKS, Found, best_block, final_runs, finals, markdown, spread, the

GATED, RECOMMENDED = "gated_start_sample_best", "zero_start_best"
LORA = "lora8_start_best"
README_TASKS = {"eurosat": "EuroSAT", "dtd10": "DTD, 10 classes"}
SHOWN_ON = "eurosat"  # parameters and file depend on block and classes. Those of this task are shown
Cell = Callable[[str, Found], str]  # task and cells -> what the table shows


def _nearest(task: str, found: Found) -> str:
    return f"{100 * the(found, task, 'nearest')['test']:.1f}"


def _last_block(task: str, found: Found) -> str:
    return f"{100 * the(found, task, 'probe')['test'][LAST]:.1f}"


def _best_block(task: str, found: Found) -> str:
    return f"{100 * the(found, task, 'probe')['test'][best_block(task, found)]:.1f}"


def _row(row: str) -> Cell:
    return lambda task, found: spread(finals(task, row, found))


def _size(parameters: int) -> list[str]:
    """Trainable parameters, and the file that holds them in float32."""
    size = 4 * parameters / 1000
    return [f"{parameters:,}", f"{size:.0f} kB" if size < 1000 else f"{size / 1000:.0f} MB"]


def readme(race: race_page.Rows, found: Found) -> str:
    """The README's five rows: two probes of the race, and what was trained on the published split."""
    probes = {
        "linear probe, last block": "probe of the last block",
        "linear probe, block set": "probe of the block set",
    }
    trained = {
        "zero-start prompts, best block": RECOMMENDED,
        "LoRA of rank 8, all blocks": "lora8",
        "full fine-tuning": "full",
    }
    rows = [["", *README_TASKS.values(), "trainable parameters", "file"]]
    for name, row in probes.items():
        runs = race[row]
        cells = [race_page.percent(race_page.of_task(runs, task)) for task in README_TASKS]
        rows.append(
            [f"{name}, all labels", *cells, *_size(race_page.of_task(runs, SHOWN_ON)[0]["num_trainable_params"])]
        )
    for name, row in trained.items():
        cells = [_row(row)(task, found) for task in README_TASKS]
        rows.append([name, *cells, *_size(final_runs(SHOWN_ON, row, found)[0]["trained_parameters"])])
    return markdown(rows)


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
