# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The short tables of measured and of published accuracies in the README and docs/which_method.md.

`readme_tables.py` puts them into the pages; each is made from committed results.
"""

from collections.abc import Callable

from miniature import pages as miniature_pages
from miniature.grid import Records
from real import grid, images
from real.cells import Found, best_block, finals, markdown, spread
from recipe import grids

RECOMMENDED = "gated_start_sample_best"
LORA = "lora8_start_best"
SHOWN_ON = "eurosat"  # trained numbers and file depend on the block and the classes; those of this task are shown
CLASSES, FEATURES = 10, 2 * 384  # of that task; CLS beside the mean patch of a ViT-S
COST_READ = 6  # the block after which the cost was measured
Cell = Callable[[str, Found], str]  # task and cells -> what the table shows


def _nearest(task: str, found: Found) -> str:
    return f"{100 * found[task, 'nearest']['test']:.1f}"


def _last_block(task: str, found: Found) -> str:
    return f"{100 * found[task, 'probe']['test'][grid.LAST - 1]:.1f}"


def _best_block(task: str, found: Found) -> str:
    return f"{100 * found[task, 'probe']['test'][best_block(task, found) - 1]:.1f}"


def _row(row: str) -> Cell:
    return lambda task, found: spread(finals(task, row, found))


def _trained(row: str, found: Found) -> int | None:
    cell = grid.final(SHOWN_ON, row, grid.SEEDS[0], found)
    run = found.get((SHOWN_ON, cell.name)) if cell else None
    return None if run is None else int(run["trained_parameters"])


def _size(numbers: int | None) -> list[str]:
    """Trained numbers, and the file that holds them in float32."""
    return ["not run", "not run"] if numbers is None else [f"{numbers:,}", f"{4 * numbers / 1000:.0f} kB"]


def _milliseconds(name: str, found: Found) -> str:
    return f"{1000 * found['cost', 'steps']['steps'][f'{name} read{COST_READ}']['seconds'] / 20:.1f} ms"


def real(found: Found) -> str:
    """What each method reaches on the real backbone, and what it costs."""
    head = [*_size(CLASSES * (FEATURES + 1)), "none: one pass"]
    prompts = [*_size(_trained(RECOMMENDED, found)), _milliseconds("gated", found)]
    lora = [*_size(_trained(LORA, found)), _milliseconds("lora8", found)]
    rows: list[tuple[str, Cell, list[str]]] = [
        ("linear probe, last block", _last_block, head),
        ("linear probe, best block", _best_block, head),
        ("gated prompts, best block", _row(RECOMMENDED), prompts),
        ("LoRA of rank 8, best block", _row(LORA), lora),
    ]
    header = ["", *images.TASKS, "trained numbers", "file", "training step, per image"]
    return markdown([header, *([name, *_cells(cell, found), *costs] for name, cell, costs in rows)])


def ladder(found: Found) -> str:
    """The same backbone, from what trains nothing to what trains everything."""
    rows: dict[str, Cell] = {
        "nearest neighbours, last block": _nearest,
        "linear probe, last block": _last_block,
        "linear probe, best block": _best_block,
        "gated prompts, fitted head, best block": _row(RECOMMENDED),
        "LoRA of rank 8, fitted head, best block": _row(LORA),
        "full fine-tuning, last block": _row("full"),
    }
    return markdown([["", *images.TASKS], *([name, *_cells(cell, found)] for name, cell in rows.items())])


def _cells(cell: Cell, found: Found) -> list[str]:
    return [cell(task, found) for task in images.TASKS]


def miniature(found: Records) -> str:
    """The masked autoencoder of the miniature, from the linear head to full fine-tuning."""
    tasks = [task for backbone, task in miniature_pages.pairs_with_results(found) if backbone == "mae"]
    rows = [["", *tasks]]
    for variant in ("linear", "shallow", "gated", "deep", "lora", "full"):
        cells = [miniature_pages.cell("mae", task, variant, found) for task in tasks]
        rows.append([miniature_pages.NAMES[variant], *cells])
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
