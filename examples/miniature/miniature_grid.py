# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The miniature's runs: what is compared, which settings are tried, and which runs are still to be made.

Each variant tries its settings with the first seed and keeps those with the best accuracy on the 200 validation
images (ties: the first listed). The other seeds run with these. Test accuracies are never looked at to choose.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BACKBONES = {"mae": "mae-cifar10-tiny", "supervised": "supervised-cifar10-tiny"}
SEEDS = (0, 1, 2)
BLOCKS = (0, 3, 6, 9, 11)

Setting = tuple[float, float]  # learning rate, initial gate logit
RATES = ((0.1, -1.0), (0.3, -1.0))  # the gate logit matters to gated variants alone


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        method: One of `methods.METHODS`.
        settings: What it tries.
        insert_at: The block that prompts enter.
        start: Method of `initialize_prompts`; None leaves the random start.
        like: The variant whose chosen settings it takes, rather than trying its own.
    """

    method: str
    settings: tuple[Setting, ...] = RATES
    insert_at: int = 0
    start: str | None = None
    like: str | None = None


VARIANTS: dict[str, Variant] = {
    "linear": Variant("linear"),
    "full": Variant("full", ((0.02, -1.0), (0.1, -1.0))),
    "lora": Variant("lora"),
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
    """One training run; what all have in common is in run.py."""

    backbone: str
    task: str
    variant: str
    setting: Setting
    seed: int

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.backbone, self.task, self.variant, *self.setting, self.seed)


Records = Mapping[tuple[Any, ...], Mapping[str, Any]]  # by key


def chosen(backbone: str, task: str, variant: str, records: Records) -> Setting | None:
    """The setting with the best validation accuracy; None while some have not been tried."""
    settings = VARIANTS[variant].settings
    like = VARIANTS[variant].like
    if like is not None:
        return chosen(backbone, task, like, records)
    keys = [MiniRun(backbone, task, variant, setting, SEEDS[0]).key for setting in settings]
    if any(key not in records for key in keys):
        return None
    return max(zip(settings, keys, strict=True), key=lambda pair: records[pair[1]]["val_accuracy"])[0]


def final_runs(backbone: str, task: str, variant: str, records: Records) -> list[MiniRun]:
    """The runs behind one cell of the table, made or not; empty while settings are not chosen."""
    setting = chosen(backbone, task, variant, records)
    return [] if setting is None else [MiniRun(backbone, task, variant, setting, seed) for seed in SEEDS]


def scores(backbone: str, task: str, variant: str, records: Records, what: str = "test_accuracy") -> list[float]:
    """Percent of the final runs that have been made."""
    keys = [run.key for run in final_runs(backbone, task, variant, records)]
    return [100 * float(records[key][what]) for key in keys if key in records]


def missing_runs(
    backbones: Iterable[str], tasks: Sequence[str], variants: Sequence[str], records: Records
) -> list[MiniRun]:
    """Runs that can be made now and have no record. Those of later seeds appear when settings are chosen."""
    found: dict[tuple[Any, ...], MiniRun] = {}
    for backbone in backbones:
        for variant in variants:
            for task in tasks:
                runs = final_runs(backbone, task, variant, records)
                if not runs:
                    source = VARIANTS[variant].like or variant
                    settings = VARIANTS[source].settings
                    runs = [MiniRun(backbone, task, source, setting, SEEDS[0]) for setting in settings]
                found |= {run.key: run for run in runs if run.key not in records}
    return list(found.values())
