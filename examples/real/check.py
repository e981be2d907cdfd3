# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Rerun a part with a new seed and see whether it lands where the committed results say; under half an hour.

    python examples/real_backbone.py check --data_dir FOLDER

The frozen rows are computed again for every task and compared with the committed ones to `FROZEN` points; some rows
train again on one task with seed 3 and the committed rates. Exit status 1: at least one accuracy lies outside.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev, variance
from tempfile import TemporaryDirectory

from . import grid, images, records
from .cells import Found, finals
from .run import Runner

NEW_SEED = 3
TRAINED, TRAINED_ON = ("gated_start_sample_best", "zero_start_best"), ("eurosat", "dtd10")
FROZEN = 1.1  # points, two validation images: another processor rounds otherwise
AT_LEAST = 0.5  # points: what seeds differ by at the least, where few have run


def outside(name: str, new: float, committed: float, allowed: float) -> bool:
    """Print the comparison, in percent; True where it is too far off."""
    far = abs(new - committed) > allowed
    print(f"{'OUT ' if far else 'ok  '} {name}: {new:.1f}, committed {committed:.1f} ± {allowed:.1f}", flush=True)
    return far


def pooled_deviation(cells: Sequence[Sequence[float]]) -> float:
    """Root of the mean variance over seeds of all cells that have several."""
    several = [variance(values) for values in cells if len(values) > 1]
    return max(AT_LEAST, math.sqrt(mean(several)) if several else 0.0)


def tolerance(committed: Sequence[float], pooled: float) -> float:
    """Three deviations of the difference between one new run and the mean of n committed ones."""
    own = stdev(committed) if len(committed) > 1 else 0.0
    return 3 * max(own, pooled) * math.sqrt(1 + 1 / len(committed))


def check_frozen(runner: Runner, committed: Found, tasks: Sequence[str]) -> int:
    """Number of frozen accuracies that lie outside."""
    count = 0
    for task in tasks:
        runner.probe(task)
        again = runner.found()
        for name in ("val", "test"):
            pairs = zip(again[task, "probe"][name], committed[task, "probe"][name], strict=True)
            for block, (new, old) in enumerate(pairs, start=1):
                count += outside(f"{task}, probe of block {block}, {name}", 100 * new, 100 * old, FROZEN)
    return count


def main(args: Namespace) -> int:
    """Run again, in a folder that is deleted afterwards, and compare; the exit status."""
    committed = records.read(args.results)
    pooled = pooled_deviation([finals(task, row, committed) for task in images.TASKS for row in grid.ROWS])
    with TemporaryDirectory() as folder:
        runner = Runner(args.backbone, args.data_dir, Path(folder) / "features", Path(folder) / "cells")
        count = check_frozen(runner, committed, args.tasks)
        for task in (task for task in TRAINED_ON if task in args.tasks):
            for row in args.rows or TRAINED:
                values, cell = finals(task, row, committed), grid.final(task, row, NEW_SEED, committed)
                if values and cell is not None:
                    new = 100 * runner.train(cell, committed)["test"]
                    count += outside(f"{task}, {row}, seed {NEW_SEED}", new, mean(values), tolerance(values, pooled))
    print(f"{count} accuracies lie outside")
    return 1 if count else 0
