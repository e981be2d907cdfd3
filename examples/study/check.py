# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Run a part of the committed results again, with a new seed, and compare.

An accuracy may lie three deviations of the difference between one run and the mean of n from the committed mean. Three
seeds estimate their own deviation poorly, so it counts as at least the pooled one of all compared rows.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gated_prompt import GatedPromptConfig, GatedPromptError, initialize_prompts
from gated_prompt.starts.linear_probe import PROBLEMS, fit_path

from . import frozen_rows, miniature, records, tasks
from .draws import block_features
from .records import Record
from .tasks import Task
from .training import Loop, accuracy, fit, groups, reader, start_head

RESULTS = Path(__file__).parent / "results"
NEW_SEED = 3
AT_LEAST = 0.5  # points: what seeds differ by at the least, where few have run
FROZEN = 1.1  # points: two validation images. Another processor rounds otherwise
REAL_EPOCHS = 10  # of the final runs
REAL_ROWS, REAL_TASKS = ("gated_start_sample_best", "zero_start_best"), ("eurosat", "dtd10")
MINIATURE_ROWS = ("linear", "shallow", "shallow_at_6", "gated")
# Rows of docs/benchmark.md: a record holds the rates and the block that were chosen for its run, ROWS the rest
BATCH, WARMUP = 20, 1.0
GATE_INIT = -3.0
START_IMAGES = 200  # that prompts start from, if they start from images
METHODS: Mapping[str, Mapping[str, Any]] = {  # what each fixes in the configuration
    "shallow": {"gates": False, "temperature": False},
    "deep": {"deep": True, "temperature": False},
    "gate_only": {"gates": True, "temperature": False},
    "temperature_only": {"gates": False, "temperature": True},
    "gated": {"gates": True, "temperature": True},
    "zero": {"deep": True, "zero_start": True, "temperature": False, "prompt_dropout": 0.0},
}


def pooled_deviation(cells: Iterable[Sequence[float]]) -> float:
    """Root of the mean variance over seeds of all cells that have several, at least `AT_LEAST`."""
    several = [variance(values) for values in cells if len(values) > 1]
    return max(AT_LEAST, math.sqrt(mean(several)) if several else 0.0)


def tolerance(committed: Sequence[float], pooled: float) -> float:
    """Three deviations of the difference between one new run and the mean of the committed ones, in points."""
    own = stdev(committed) if len(committed) > 1 else 0.0
    return 3 * max(own, pooled) * math.sqrt(1 + 1 / len(committed))


def is_outside(name: str, new: float, committed: float, allowed: float) -> bool:
    """Print the comparison, in percent. True if it is too far off."""
    far = abs(new - committed) > allowed
    print(f"{'OUT ' if far else 'ok  '} {name}: {new:.1f}, committed {committed:.1f} ± {allowed:.1f}", flush=True)
    return far


def check_miniature(backbones: Sequence[str], names: Sequence[str], rows: Sequence[str], data_dir: Path | None) -> int:
    """The number of accuracies outside.

    Raises:
        GatedPromptError: there are no complete committed results for what is asked.
    """
    committed = {}
    for backbone in backbones:
        for task in names:
            found = records.read(RESULTS / "miniature" / f"{backbone}-{task}.jsonl")
            for row in rows:
                runs = miniature.final_runs(row, found)
                if len(runs) == len(miniature.SEEDS):
                    committed[backbone, task, row] = runs
    if not committed:
        raise GatedPromptError(f"{RESULTS} has no complete results for these backbones, tasks and rows")
    values = {cell: [100 * run["test"] for run in runs] for cell, runs in committed.items()}
    pooled, outside = pooled_deviation(values.values()), 0
    for cell, runs in committed.items():
        run = miniature.Run(*cell, runs[0]["rate"], NEW_SEED)
        new = 100 * miniature.execute(run, data_dir)["test"]
        outside += is_outside(" ".join(cell), new, mean(values[cell]), tolerance(values[cell], pooled))
    return outside


def check_real(names: Sequence[str], rows: Sequence[str], data_dir: Path, backbone: Path) -> int:
    """The number of accuracies outside: the probe of each block of these tasks, and trained rows on two of them."""
    found = {name: records.read(RESULTS / "real" / f"{name}.jsonl") for name in names}
    finals = {
        (name, row): [one for one in found[name] if one.get("row") == row and one["epochs"] == REAL_EPOCHS]
        for name in names
        for row in ROWS
    }
    pooled = pooled_deviation([[100 * run["test"] for run in runs] for runs in finals.values()])
    outside = 0
    for name in names:
        task, (probe,) = tasks.load(name, data_dir), [one for one in found[name] if one["kind"] == "probe"]
        outside += _check_probes(task, probe, backbone)
        for row in rows if name in REAL_TASKS else ():
            runs = finals[name, row]
            if runs:
                l2 = 1 / probe["strengths"][runs[0]["read_from"]]
                new = train_again(runs[0], l2, task, backbone, NEW_SEED)
                values = [100 * run["test"] for run in runs]
                what = f"{name}, {row}, seed {NEW_SEED}"
                outside += is_outside(what, 100 * new["test"], mean(values), tolerance(values, pooled))
    return outside


def _check_probes(task: Task, committed: Record, backbone: Path) -> int:
    features = {part: torch.cat(list(block_features(backbone, images))) for part, images in task.parts.items()}
    labels, outside = {part: images.labels for part, images in task.parts.items()}, 0
    for block, strength in enumerate(committed["strengths"]):
        x = {part: frozen_rows.read(values, [block]) for part, values in features.items()}
        ((weight, bias),) = fit_path(x["train"], labels["train"], task.num_classes, PROBLEMS[0], [1 / strength])
        for part in ("val", "test"):
            new = 100 * frozen_rows.score(x[part], labels[part], weight[0], bias[0])
            name = f"{task.name}, probe of block {block}, {part}"
            outside += is_outside(name, new, 100 * committed[part][block], FROZEN)
    return outside


@dataclass(frozen=True)
class Row:
    """One line of the tables.

    Attributes:
        method: One of `METHODS`, "lora" or "full".
        insert_at: The block that prompts enter. None: half-way to the block that is read.
        fitted: The head starts as the probe of the features with the untrained prompts in place.
        start: Method of `initialize_prompts`. None: random initialization.
        prompts: How many. For deep and zero-start prompts, in each block.
        rank: Of LoRA.
    """

    method: str
    insert_at: int | None = 0
    fitted: bool = False
    start: str | None = None
    prompts: int = 10
    rank: int = 8


ROWS: Mapping[str, Row] = {
    **{name: Row(name) for name in METHODS},
    "shallow_at_2": Row("shallow", insert_at=2),
    "shallow_at_4": Row("shallow", insert_at=4),
    "lora8": Row("lora"),
    "full": Row("full"),
    "gated_start_best": Row("gated", fitted=True),
    "gated_start_sample_best": Row("gated", fitted=True, start="sample"),
    "gated_start_sample_half_best": Row("gated", fitted=True, start="sample", insert_at=None),
    "deep_start_sample_best": Row("deep", fitted=True, start="sample"),
    "zero_start_best": Row("zero", fitted=True),
    "lora4_start_best": Row("lora", fitted=True, rank=4),
    "lora8_start_best": Row("lora", fitted=True),
}


def build(row: Row, task: Task, backbone: Path, read_from: int, seed: int) -> nn.Module:
    """The model as it starts, but for a fitted head."""
    torch.manual_seed(seed)
    model = reader(backbone, [read_from], task.num_classes)
    nn.init.normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    if row.method == "full":
        return model
    if row.method == "lora":
        targets = ["q_proj", "v_proj"]
        config = LoraConfig(r=row.rank, lora_alpha=row.rank, target_modules=targets, modules_to_save=["classifier"])
        return get_peft_model(model, config)
    entry = (read_from + 1) // 2 if row.insert_at is None else row.insert_at
    settings: dict[str, Any] = {"num_virtual_tokens": row.prompts, "insert_at": entry, "gate_init": GATE_INIT}
    adapted = get_peft_model(model, GatedPromptConfig(**settings, **METHODS[row.method]))
    if row.start is not None:
        batches = [task.parts["train"].batch(index) for index in torch.arange(START_IMAGES).split(50)]
        initialize_prompts(adapted, batches, method=row.start, seed=seed)
    return adapted


def train_again(record: Record, l2: float, task: Task, backbone: Path, seed: int) -> Record:
    """Train the row of a record again, with another seed. `l2` is the penalty of a fitted head."""
    row = ROWS[record["row"]]
    model = build(row, task, backbone, record["read_from"], seed)
    train, val, test = (task.parts[part] for part in ("train", "val", "test"))
    if row.fitted:
        start_head(model, train, l2)
    begin = time.process_time()
    curve = [accuracy(model, val)] if row.fitted else []
    loop = Loop(record["epochs"], WARMUP, BATCH, seed)
    losses = fit(
        model,
        groups(model, record["rate"], record["head_rate"]),
        train,
        loop,
        lambda _: curve.append(accuracy(model, val)),
    )
    settings = {key: record[key] for key in ("row", "epochs", "rate", "gate_rate", "head_rate", "read_from")}
    return {
        "kind": "run",
        **settings,
        "seed": seed,
        "val": curve[-1],
        "test": accuracy(model, test),
        "curve": curve,
        "losses": losses,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }
