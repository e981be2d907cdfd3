# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The miniature's runs: the variants, the learning rates to try, and the runs that are still missing.

Each variant tries its learning rates with the first seed and keeps the one with the best accuracy on the validation
images (ties: the first listed). The other seeds use that rate. Test accuracies play no part in the choice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gated_prompt.shipped import SHIPPED_BACKBONE

BACKBONES = {
    "mae": SHIPPED_BACKBONE,
    "supervised": Path(__file__).parents[1] / "backbones" / "supervised-cifar10-tiny",
}
SEEDS = (0, 1, 2)
BLOCKS = (0, 2, 4, 6, 8, 10)
RATES = (0.03, 0.1)  # of prompts, gates and temperatures


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        method: One of `methods.METHODS`.
        rates: Learning rates to try: of the head for "linear", otherwise of everything but the head.
        insert_at: The block at which prompts are inserted.
        start: Method of `initialize_prompts`; None: random initialization.
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
SWEEP = ("shallow", *(f"shallow_at_{k}" for k in BLOCKS[1:]))


@dataclass(frozen=True)
class MiniRun:
    """One training run; runs.py has the settings that all runs share."""

    backbone: str
    task: str
    variant: str
    learning_rate: float
    seed: int

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.backbone, self.task, self.variant, self.learning_rate, self.seed)


Records = Mapping[tuple[Any, ...], Mapping[str, Any]]  # by key


def chosen_rate(backbone: str, task: str, variant: str, records: Records) -> float | None:
    """Return the learning rate with the best validation accuracy; None until all have been tried."""
    rates, like = VARIANTS[variant].rates, VARIANTS[variant].like
    if like is not None:
        return chosen_rate(backbone, task, like, records)
    keys = [MiniRun(backbone, task, variant, rate, SEEDS[0]).key for rate in rates]
    if any(key not in records for key in keys):
        return None
    return max(zip(rates, keys, strict=True), key=lambda pair: records[pair[1]]["val_accuracy"])[0]


def final_runs(backbone: str, task: str, variant: str, records: Records) -> list[MiniRun]:
    """Return the runs behind one table cell, done or not; empty until the rate is chosen."""
    rate = chosen_rate(backbone, task, variant, records)
    return [] if rate is None else [MiniRun(backbone, task, variant, rate, seed) for seed in SEEDS]


def scores(backbone: str, task: str, variant: str, records: Records, what: str = "test_accuracy") -> list[float]:
    """Return the accuracies, in percent, of the final runs that are done."""
    keys = [run.key for run in final_runs(backbone, task, variant, records)]
    return [100 * float(records[key][what]) for key in keys if key in records]


def missing_runs(
    backbones: Iterable[str], tasks: Sequence[str], variants: Sequence[str], records: Records
) -> list[MiniRun]:
    """Return the runs that can be done now and have no record; later seeds follow once the rate is chosen."""
    found: dict[tuple[Any, ...], MiniRun] = {}
    for backbone, task, variant in product(backbones, tasks, variants):
        runs = final_runs(backbone, task, variant, records)
        if not runs:
            source = VARIANTS[variant].like or variant
            runs = [MiniRun(backbone, task, source, rate, SEEDS[0]) for rate in VARIANTS[source].rates]
        found |= {run.key: run for run in runs if run.key not in records}
    return list(found.values())
