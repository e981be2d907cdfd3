# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's comparisons in miniature: small backbones, small tasks, minutes on a CPU (docs/appendix/miniature.md).

Each variant tries its learning rates with the first seed and keeps the one with the best accuracy on the validation
images (ties: the first listed). The other seeds use that rate. Test accuracies play no part in the choice.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from gated_prompt import GatedPromptError, find_vision_transformer, initialize_prompts
from gated_prompt.finetune.methods import build_model
from gated_prompt.finetune.report import read_out
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.shipped import SHIPPED_BACKBONE
from gated_prompt.training.optim import optimizer_groups
from gated_prompt.training.token_cache import StartAtBlock, prefix_tokens

from . import tasks
from .records import Record
from .training import Kept, Loop, accuracy, fit

BACKBONES = {
    "mae": SHIPPED_BACKBONE,
    "supervised": Path(__file__).parents[1] / "backbones" / "supervised-cifar10-tiny",
}
SEEDS = (0, 1, 2)
BLOCKS = (0, 2, 4, 6, 8, 10)
RATES = (0.03, 0.1)  # of prompts, gates and temperatures
RECIPE: Mapping[str, Any] = {
    "epochs": 8,
    "warmup_epochs": 1,
    "batch_size": 10,
    "head_rate": 0.03,  # of all but "linear", which searches the rate of its head
    "num_virtual_tokens": 10,
    "gate_init": -3.0,
    "pooling": "prompts_and_patches",
    "images": tasks.MINI_SIZES,
}
CURVES = ("shallow", "gated", "gated_sample", "gated_kmeans")  # record validation accuracy after each epoch


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        method: One of `methods.METHODS`.
        rates: Learning rates to try: of the head for "linear", otherwise of everything but the head.
        insert_at: The block at which prompts are inserted.
        start: Method of `initialize_prompts`. None: random initialization.
        like: The variant whose chosen rate is reused instead of a search.
    """

    method: str
    rates: tuple[float, ...] = RATES
    insert_at: int = 0
    start: str | None = None
    like: str | None = None


VARIANTS: dict[str, Variant] = {
    "linear": Variant("linear"),
    "full": Variant("full", (0.0003, 0.001)),
    "lora": Variant("lora", (0.003, 0.01)),
    "deep": Variant("deep"),
    "shallow": Variant("shallow"),
    **{f"shallow_at_{k}": Variant("shallow", insert_at=k) for k in BLOCKS[1:]},
    "temperature_only": Variant("temperature_only"),
    "gate_only": Variant("gate_only"),
    "gated": Variant("gated"),
    "gated_sample": Variant("gated", start="sample", like="gated"),
    "gated_kmeans": Variant("gated", start="kmeans", like="gated"),
}


@dataclass(frozen=True)
class Run:
    """One training run."""

    backbone: str
    task: str
    row: str
    rate: float
    seed: int

    def is_recorded(self, record: Record) -> bool:
        """Whether a record of this backbone and task is of this run."""
        return (record["row"], record["rate"], record["seed"]) == (self.row, self.rate, self.seed)


def chosen_rate(row: str, found: list[Record]) -> float | None:
    """The learning rate with the best validation accuracy on one backbone and task. None until all were tried."""
    variant = VARIANTS[row]
    if variant.like is not None:
        return chosen_rate(variant.like, found)
    tried = {one["rate"]: one["val"] for one in found if one["row"] == row and one["seed"] == SEEDS[0]}
    if not set(variant.rates) <= tried.keys():
        return None
    return max(variant.rates, key=lambda rate: tried[rate])


def final_runs(row: str, found: list[Record]) -> list[Record]:
    """The records behind one table cell, by seed."""
    rate = chosen_rate(row, found)
    runs = [one for one in found if one["row"] == row and one["rate"] == rate]
    return sorted(runs, key=lambda one: one["seed"])


def missing(backbone: str, task: str, row: str, found: list[Record]) -> Iterator[Run]:
    """The runs that can be done now and have no record. Later seeds follow once the rate is chosen.

    Raises:
        GatedPromptError: a record was made with another recipe.
    """
    for one in found:
        if one["recipe"] != dict(RECIPE):
            raise GatedPromptError(
                f"{backbone}-{task}.jsonl was made with the recipe {one['recipe']}, expected {dict(RECIPE)}. Use "
                "another --output_dir."
            )
    rate = chosen_rate(row, found)
    if rate is not None:
        runs = [Run(backbone, task, row, rate, seed) for seed in SEEDS]
    else:
        source = VARIANTS[row].like or row
        runs = [Run(backbone, task, source, tried, SEEDS[0]) for tried in VARIANTS[source].rates]
    yield from (run for run in runs if not any(map(run.is_recorded, found)))


@lru_cache(maxsize=1)
def load_task(name: str, data_dir: Path | None) -> tasks.Task:
    """The images of a task, decoded once."""
    return tasks.load(f"mini_{name}", data_dir)


def build(run: Run, task: tasks.Task) -> nn.Module:
    """The initial model of a run: seeded, and with prompts from the training images if the variant says so."""
    variant = VARIANTS[run.row]
    torch.manual_seed(run.seed)
    prompts = PromptArguments(
        num_virtual_tokens=RECIPE["num_virtual_tokens"],
        insert_at=variant.insert_at,
        gate_init=RECIPE["gate_init"],
        pooling=RECIPE["pooling"],
    )
    names = [str(label) for label in range(task.num_classes)]
    model = build_model(str(BACKBONES[run.backbone]), variant.method, prompts, names)
    if variant.start is not None:
        train = task.parts["train"]
        batches = [train.batch(index) for index in torch.arange(len(train)).split(50)]
        initialize_prompts(model, batches, method=variant.start, seed=run.seed)
    return model


@lru_cache(maxsize=1)
def _kept(backbone: str, task: str, data_dir: Path | None, first: int) -> dict[str, tasks.Part]:
    """Tokens that reach block `first`, by part: the blocks below are not trained, so runs share them."""
    loaded = load_task(task, data_dir)
    model = build(Run(backbone, task, "linear", 0.0, 0), loaded).eval()
    start = StartAtBlock(model, first)
    kept: dict[str, tasks.Part] = {}
    for name, part in loaded.parts.items():
        images = TensorDataset(part.batch(torch.arange(len(part))), part.labels)
        with torch.no_grad():
            kept[name] = Kept(torch.cat([t for t, _ in prefix_tokens(model, start, images, 100)]), part.labels)
    return kept


def execute(run: Run, data_dir: Path | None) -> Record:
    """Train one model and return its record."""
    begin = time.process_time()
    task, variant = load_task(run.task, data_dir), VARIANTS[run.row]
    model, parts = build(run, task), task.parts
    first = len(find_vision_transformer(model).blocks) if variant.method == "linear" else variant.insert_at
    if first:
        parts = _kept(run.backbone, run.task, data_dir, first)
        StartAtBlock(model, first).open()
    own = {} if variant.method == "linear" else {"head": {"lr": RECIPE["head_rate"]}}
    groups = optimizer_groups(model, run.rate, 0.0, own)
    curve: list[list[float]] = []

    def after_epoch(epoch: int) -> None:
        if run.row in CURVES or epoch == RECIPE["epochs"]:
            curve.append([epoch, accuracy(model, parts["val"])])

    loop = Loop(RECIPE["epochs"], RECIPE["warmup_epochs"], RECIPE["batch_size"], run.seed)
    losses = fit(model, groups, parts["train"], loop, after_epoch)
    return {
        "kind": "run",
        "row": run.row,
        "seed": run.seed,
        "rate": run.rate,
        "val": curve[-1][1],
        "test": accuracy(model, parts["test"]),
        "curve": curve,
        "losses": losses,
        **{name: [round(value, 5) for value in values] for name, values in read_out(model).items()},
        "trained_parameters": sum(p.numel() for group in groups for p in group["params"]),
        "cpu_seconds": round(time.process_time() - begin, 1),
        "recipe": dict(RECIPE),
    }
