# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Write `examples/paper/<table>.json`: every setting of every cell of the paper's tables, and its origin.

    python tools/manifests.py

Origins: "paper" (Yoo et al. 2023), "official code" (ryongithub/GatedPromptTuning), "VPT" (KMnP/vpt), or "our reading"
where neither says.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from paper.grids import SEARCH_SEED, SEEDS, TABLES, published_row, row_of
from paper.presets import Row, paper_preset
from paper.records import RECIPE
from train_ade20k import Arguments as SegmentationArguments
from train_vtab import Arguments

FOLDER = Path(__file__).parents[1] / "examples" / "paper"
VTAB_SAMPLING = "resize to 224 x 224 as tensorflow.compat.v1, no augmentation, floats; EXIF is ignored"
FGVC_CROPS = "short side 256, random crop of 224 and flip (test: centre crop); EXIF is ignored"
ORIGINS = {  # setting of the training scripts -> origin of its value
    "optimizer": "official code",
    "momentum": "official code",
    "weight_decay": "official code",
    "num_train_epochs": "official code",
    "warmup_epochs": "official code",
    "schedule_by": "official code",
}
CODE = {
    "prompt_dropout": (0.1, "official code"),
    "temperature_init": (1.0, "official code"),
    "temperature_range": ([0.01, 10.0], "official code"),
    "head_init": ("kaiming, bias 0 (the official bias is one constant for all classes)", "official code"),
    "pooling": ({"mae": "mean of prompts and patches, then the norm", "moco": "norm, then CLS"}, "official code"),
    "precision": ("float32, TF32 off", "official code"),
    "dataloader_num_workers": (4, "official code"),
}
SETTINGS = {  # settings of each cell -> origin
    "batch_size": "paper, Table 5",
    "num_virtual_tokens": "paper, Table 5; our reading for other methods (VPT-deep: 10 a block where gated has 100)",
    "learning_rate": "paper, Table 5; searched where the row has a search",
    "gate_init": "paper, Table 5, with the official code's sign; of gated prompts alone",
}
ROW_ORIGIN = "the table's caption in the paper; optimizer and warm-up of full fine-tuning: VPT"


def _common(table: str) -> dict[str, Any]:
    if table == "ade20k":
        names: tuple[str, ...] = ("crop_size", "max_train_steps", "momentum", "weight_decay", "min_learning_rate")
        names += ("head_learning_rate_factor", "auxiliary_blocks")
        args = SegmentationArguments()
        origin = {"auxiliary_blocks": "paper, Section 5.1"}
        return {name: _of(getattr(args, name), origin.get(name, "our reading: mmsegmentation's")) for name in names}
    images = {"images": _of({"vtab": VTAB_SAMPLING, "fgvc": FGVC_CROPS}, "official code")}
    run = {name: _of(getattr(Arguments(), name), origin) for name, origin in ORIGINS.items()}
    return run | {name: _of(*content) for name, content in CODE.items()} | images


def _of(value: Any, origin: str) -> dict[str, Any]:
    return {"value": value, "origin": origin}


def _row(table: str, kind: str, row: Row) -> dict[str, Any]:
    values, source = published_row(table, kind, row.name)
    searched = TABLES[table].search
    return {
        "method": row.method,
        "settings": {name: _of(value, ROW_ORIGIN) for name, value in row.settings.items()},
        "search": asdict(row.search) if searched else None,
        "published": {"values": values, "source": source},
        "not_comparable": row.unlike,
        "cells": {task: _cell(kind, row, task) for task in TABLES[table].tasks},
    }


def _cell(kind: str, row: Row, task: str) -> dict[str, Any]:
    settings = asdict(paper_preset(task, kind, row.method)) | dict(row.settings)
    names = ("batch_size", "learning_rate", "num_virtual_tokens", "gate_init")
    unused = {"full": names[2:], "linear": names[2:], "shallow": names[3:], "deep": names[3:]}.get(row.method, ())
    return {name: settings[name] for name in names if name not in unused}


def manifest(table: str) -> dict[str, Any]:
    """The content of one file."""
    content = TABLES[table]
    more = ("full", "linear") if table == "vtab" else ()  # published by others
    rows = {kind: (*rows, *(row_of(m, kind, table) for m in more)) for kind, rows in content.rows.items()}
    return {
        "table": table,
        "title": content.title,
        "recipe": RECIPE,
        "seeds": _of(list(SEEDS), "VPT; the paper states no number of runs"),
        "search_seed": _of(SEARCH_SEED, "official code"),
        "every_cell": _common(table),
        "origin_of_cells": SETTINGS,
        "rows": {kind: {row.name: _row(table, kind, row) for row in rows[kind]} for kind in rows},
    }


def text(table: str) -> str:
    """The file. What has no dictionaries inside stands on one line."""
    return _lines(manifest(table), "") + "\n"


def _lines(value: Any, indent: str) -> str:
    if not isinstance(value, dict) or not any(isinstance(inner, dict) for inner in value.values()):
        return json.dumps(value)
    inside = ",\n".join(f"{indent} {json.dumps(name)}: {_lines(inner, indent + ' ')}" for name, inner in value.items())
    return f"{{\n{inside}\n{indent}}}"


if __name__ == "__main__":
    for name in TABLES:
        (FOLDER / f"{name}.json").write_text(text(name))
