# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Rerun part of the miniature with a new seed and compare the accuracies with the committed results.

    python examples/miniature/check.py                     # digits and sprites
    python examples/miniature/check.py --data_dir FOLDER   # also CIFAR-10 and DTD

Uses the learning rates chosen in the committed results. Exit status 1: at least one accuracy is out of tolerance.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev, variance

from gated_prompt import GatedPromptError
from gated_prompt.command_line import CommandLine
from gated_prompt.training.quiet import quiet_loading

from . import data, records
from .grid import BACKBONES, SEEDS, MiniRun, chosen_rate, scores
from .runs import HERE, RECIPE, check_names, run_all

NEW_SEED = 3
COMMITTED = HERE / "results"


@dataclass
class Arguments:
    """What to run again."""

    output_dir: str = field(default="runs/miniature-check", metadata={"help": "folder for the new records"})
    data_dir: str | None = field(default=None, metadata={"help": "folder with cifar10_jpeg and dtd10"})
    backbones: list[str] = field(default_factory=lambda: list(BACKBONES), metadata={"help": "mae, supervised"})
    variants: list[str] = field(
        default_factory=lambda: ["linear", "shallow", "shallow_at_6", "gated"],
        metadata={"help": "variants to run again"},
    )
    workers: int = field(default=2, metadata={"help": "number of single-threaded processes"})


def pooled_deviation(cells: Iterable[Sequence[float]]) -> float:
    """Return the root of the mean variance over seeds, in the unit of the accuracies; skips cells of one run."""
    return math.sqrt(mean(variance(values) for values in cells if len(values) > 1))


def tolerance(committed: Sequence[float], pooled: float) -> float:
    """Return the allowed distance of a new accuracy from the committed mean: three deviations of their difference.

    The difference between a new run and the mean of n runs has sqrt(1 + 1/n) standard deviations of one run. Three
    seeds estimate their own deviation poorly, so it counts as at least `pooled`, that of all compared cells together.
    """
    return 3 * max(stdev(committed), pooled) * math.sqrt(1 + 1 / len(committed))


def verdict(name: str, new: float, committed: Sequence[float], pooled: float) -> tuple[bool, str]:
    """Return whether the new accuracy (percent) is within tolerance, and the line to print about it."""
    off, allowed = new - mean(committed), tolerance(committed, pooled)
    inside = abs(off) <= allowed
    return inside, f"{'ok  ' if inside else 'OUT '} {name}: {new:.1f}, committed {mean(committed):.1f} ± {allowed:.1f}"


def main(argv: list[str] | None = None) -> int:
    """Run with these arguments (None: the command line's) and return the exit status."""
    (args,) = CommandLine([Arguments], __doc__).parse(argv)
    quiet_loading()
    data_dir = None if args.data_dir is None else Path(args.data_dir)
    committed = records.read(COMMITTED, RECIPE)
    tasks = list(data.FREE if data_dir is None else data.TASKS)
    check_names("backbones", args.backbones, list(BACKBONES))
    cells = [
        (backbone, task, variant)
        for backbone in args.backbones
        for task in tasks
        for variant in args.variants
        if len(scores(backbone, task, variant, committed)) == len(SEEDS)
    ]
    if not cells:
        raise GatedPromptError(f"{COMMITTED} has no complete results for these backbones, tasks and variants")
    runs = []
    for cell in cells:
        rate = chosen_rate(*cell, committed)
        assert rate is not None  # else scores() would be empty
        runs.append(MiniRun(*cell, rate, NEW_SEED))
    folder = Path(args.output_dir)
    done = records.read(folder, RECIPE)
    run_all(folder, data_dir, [run for run in runs if run.key not in done], args.workers)
    done = records.read(folder, RECIPE)
    pooled = pooled_deviation(scores(*cell, committed) for cell in cells)
    outcomes = [
        verdict(" ".join(cell), 100 * done[run.key]["test_accuracy"], scores(*cell, committed), pooled)
        for cell, run in zip(cells, runs, strict=True)
    ]
    print("\n".join(line for _, line in outcomes))
    outside = sum(not inside for inside, _ in outcomes)
    print(f"{len(outcomes) - outside} of {len(outcomes)} accuracies are within tolerance; seed {NEW_SEED}")
    return 1 if outside else 0
