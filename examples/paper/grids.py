# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's tables as grids: which rows and tasks each has, how a row is searched, and the runs behind one cell."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gated_prompt import GatedPromptError
from gated_prompt.data.vtab import TASKS as VTAB
from gated_prompt.finetune.recipe import METHODS

from .jobs import Run
from .presets import FULL, LINEAR, OURS, PAPER, Choice, Row, Search, Value, paper_preset
from .records import RECIPE

SEEDS = (42, 44, 82, 100, 800)  # those of VPT's five runs. The paper does not tell how many it made
SEARCH_SEED = 42
VITB_BLOCKS = 12


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        title: What it shows.
        tasks: Its columns.
        rows: Its rows, by kind of backbone ("mae", "moco").
        any_method: Whether rows of other methods can be asked for.
        metrics: Where the scores of a run lie in its results, by name. One is called "".
        search: Whether learning rates are chosen on validation images. Else they are the paper's.
        own: Row that the paper gives settings of every task for.
    """

    title: str
    tasks: tuple[str, ...]
    rows: Mapping[str, tuple[Row, ...]]
    any_method: bool = False
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"": ("accuracy",)})
    search: bool = True
    own: str | None = None


def _both(*rows: Row) -> dict[str, tuple[Row, ...]]:
    return {"mae": rows, "moco": rows}


_VPT_ROWS = "copied from VPT, with its own search of rates, decays and prompt counts, and for MAE another final norm"
_KEPT = "the paper keeps VPT-deep's own rate, which it does not give; here it is that of gated prompts"


def row_of(method: str, kind: str, table: str) -> Row:
    """The row of a method whose settings are those of the task."""
    if method == "full":
        return Row(method, method, {"optimizer": "adamw", "warmup_epochs": 5}, FULL)
    if method == "linear":
        return Row(method, method, {}, LINEAR.get(kind, LINEAR["moco"]))
    if method in ("shallow", "deep"):
        return Row(method, method, {}, PAPER, _VPT_ROWS if table == "vtab" else None)
    return Row(method, method, {}, PAPER if method == "gated" else OURS)


def _main_rows(table: str) -> dict[str, tuple[Row, ...]]:
    return {kind: tuple(row_of(m, kind, table) for m in ("shallow", "deep", "gated")) for kind in ("mae", "moco")}


def _with_prompts(
    count: int, blocks: int = VITB_BLOCKS, *, shallow: bool = True, unlike: str | None = None
) -> tuple[Row, ...]:
    """The three methods with the same number of prompts in all. VPT-deep spreads them over its blocks."""
    rows = [Row(f"shallow, {count} prompts", "shallow", {"num_virtual_tokens": count})] if shallow else []
    deep = {"num_virtual_tokens": count // blocks}
    rows.append(Row(f"deep, {count} prompts in all", "deep", deep, unlike=unlike))
    return (*rows, Row(f"gated, {count} prompts", "gated", {"num_virtual_tokens": count}))


_FGVC_TASKS = ("cub", "flowers", "cars", "dogs", "nabirds")
TABLES: Mapping[str, Table] = {
    "vtab": Table("VTAB-1k, accuracy in percent", tuple(VTAB), _main_rows("vtab"), any_method=True, own="gated"),
    "fgvc": Table("FGVC, accuracy in percent", _FGVC_TASKS, _main_rows("fgvc"), any_method=True, own="gated"),
    "fgvc_prompts": Table(
        "FGVC with fewer prompts, accuracy in percent",
        _FGVC_TASKS,
        _both(*(row for count in (24, 48, 96) for row in _with_prompts(count, shallow=False, unlike=_KEPT))),
        search=False,  # "hyper-parameters kept"
    ),
    "backbones": Table(
        "Other backbones (MAE: ViT-L/16, MoCo v3: ViT-S/16), accuracy in percent",
        ("cub", "flowers"),
        {"mae": _with_prompts(48, blocks=24), "moco": _with_prompts(48)},
    ),
    "first_figure": Table(
        "VPT-shallow with prompts from block k on, accuracy in percent",
        ("cub", "kitti"),
        _both(*(Row(f"shallow from block {k}", "shallow", {"insert_at": k}) for k in range(VITB_BLOCKS))),
        search=False,  # its learning rates are given
    ),
    "ade20k": Table(
        "ADE20K, mean intersection over union in percent, at one scale and at several",
        ("ade20k",),
        _both(
            Row("shallow, 100 prompts", "shallow", {"num_virtual_tokens": 100}),
            Row("deep, 10 prompts a block", "deep", {"num_virtual_tokens": 10}),
            Row("gated, 100 prompts", "gated", {"num_virtual_tokens": 100}),
            *_with_prompts(24),
        ),
        metrics={"single_scale": ("single_scale", "mean_iou"), "multi_scale": ("multi_scale", "mean_iou")},
        search=False,
    ),
}


def choose(what: str, asked: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The requested names in the order of the known ones, or all.

    Raises:
        GatedPromptError: one is not known. The known ones are listed.
    """
    unknown = [name for name in asked or () if name not in known]
    if unknown:
        raise GatedPromptError(f"unknown {what} {unknown[0]!r}. Choose from: {', '.join(known)}.")
    return [name for name in known if asked is None or name in asked]


def choose_rows(name: str, kind: str, methods: Sequence[str] | None) -> list[Row]:
    """The rows of these methods in the table of this name, or the paper's.

    Raises:
        GatedPromptError: the table has no row of a method, or none for this kind of backbone.
    """
    table = TABLES[name]
    if kind not in table.rows:
        raise GatedPromptError(
            f"the paper's tables are for MAE and MoCo v3, but the name of --backbone contains neither. Choose with "
            f"--backbone_kind {' or '.join(table.rows)}."
        )
    rows = table.rows[kind]
    own = list(dict.fromkeys(row.method for row in rows))
    if table.any_method and methods is not None:
        return [row_of(method, kind, name) for method in choose("method", methods, METHODS)]
    chosen = choose("method", methods, own)
    return [row for row in rows if row.method in chosen]


@dataclass(frozen=True)
class Common:
    """What all runs of a sweep share. Folders are None for the Hub, and may hold environment variables.

    Attributes:
        weights: What `records.identity_of` says of the backbone. Empty if it cannot be read.
        data: Fingerprint of each split, by task. Empty if the data cannot be read.
        curve: Score after every epoch of the final runs.
    """

    backbone: str
    kind: str
    vtab_dir: str | None = None
    fgvc_dir: str | None = None
    ade20k_dir: str | None = None
    extra: tuple[str, ...] = ()
    processes: int = 1
    mixed_precision: str = "no"
    weights: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    curve: bool = False

    def folder_of(self, task: str) -> str | None:
        """Where the data of a task lie. None: on the Hub."""
        if task == "ade20k":
            return self.ade20k_dir
        return self.vtab_dir if task in VTAB else self.fgvc_dir and f"{self.fgvc_dir}/{task}"


def search_runs(common: Common, row: Row, task: str, search: Search) -> list[Run]:
    """One run for each of the search's choices, in their order, scored on validation images."""
    splits = {"train_split": "train800", "eval_split": "val200"} if task in VTAB else {"eval_split": "val"}
    batch_size = paper_preset(task, common.kind, row.method).batch_size
    return [
        _run(common, row, task, {**splits, "seed": SEARCH_SEED, **choice}) for choice in search.choices(batch_size)
    ]


def final_run(common: Common, row: Row, task: str, seed: int, choice: Choice | None) -> Run:
    """The run that is reported, scored on the test part. `choice` None is the paper's."""
    splits: dict[str, Value] = {"train_split": "train800val200"} if task in VTAB else {}
    splits |= {"eval_split": "test"} if task != "ade20k" else {}
    splits |= {"curve": "true"} if common.curve and task != "ade20k" else {}
    return _run(common, row, task, {**splits, "seed": seed, **(choice or {})})


def _run(common: Common, row: Row, task: str, settings: Mapping[str, Value]) -> Run:
    preset = paper_preset(task, common.kind, row.method)
    rate = 0.1 if "insert_at" in row.settings and task == "kitti" else preset.learning_rate  # the first figure's
    arguments: dict[str, Value] = {"task": task, "method": row.method, "backbone": common.backbone}
    arguments |= {"learning_rate": rate, "weight_decay": 0.0}
    if task == "ade20k":
        script = "train_ade20k.py"
        arguments["per_device_train_batch_size"] = preset.batch_size // common.processes
        if row.method == "gated":
            arguments["gate_init"] = preset.gate_init
    else:
        arguments |= {"backbone_kind": common.kind, "preset": "paper", "linear_probe": "false"}
        script = "train_vtab.py" if task in VTAB else "train_fgvc.py"
    folder, fingerprints = common.folder_of(task), common.data.get(task, {})
    if folder is not None:
        arguments["data_dir"] = folder
    arguments |= {**row.settings, **settings}
    splits = [str(arguments.get("train_split", "train")), str(arguments.get("eval_split", "validation"))]
    identity: dict[str, Any] = {"recipe": RECIPE, "preset": asdict(preset), **common.weights}
    if fingerprints:
        identity["data"] = [fingerprints[split] for split in splits]
    return Run(script, arguments, common.extra, common.processes, common.mixed_precision, identity)


def scores(table: Table, results: Mapping[str, Any]) -> dict[str, float]:
    """The scores of one run in percent, by metric."""
    found = {}
    for metric, path in table.metrics.items():
        value: Any = results
        for part in path:
            value = value[part]
        found[metric] = 100 * float(value)
    return found


def column(task: str, metric: str) -> str:
    """Name of a column: the task, and the metric where a run has several."""
    return f"{task} {metric}".strip()


@cache
def published() -> dict[str, Any]:
    """The content of paper_tables.json: the published numbers and their sources."""
    return dict(json.loads((Path(__file__).parent / "paper_tables.json").read_text()))


def published_row(table: str, kind: str, row: str) -> tuple[dict[str, float], str | None]:
    """The published numbers of a row by column, and their source. Empty and None if there are none."""
    for entry in published()["tables"][table]:
        if (entry["backbone"], entry["row"]) == (kind, row):
            return dict(entry["values"]), str(entry["source"])
    return {}, None
