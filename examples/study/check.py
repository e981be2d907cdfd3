# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Run a part of the committed results again, with a new seed, and compare.

An accuracy may lie three deviations of the difference between one run and the mean of n from the committed mean. Three
seeds estimate their own deviation poorly, so it counts as at least the pooled one of all compared rows.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev, variance

import torch

from gated_prompt import GatedPromptError
from gated_prompt.starts.linear_probe import PROBLEMS, fit_path

from . import frozen_rows, miniature, real, records, tasks
from .draws import block_features

RESULTS = Path(__file__).parent / "results"
NEW_SEED = 3
AT_LEAST = 0.5  # points: what seeds differ by at the least, where few have run
FROZEN = 1.1  # points: two validation images. Another processor rounds otherwise
REAL_EPOCHS = 10  # of the final runs
REAL_ROWS, REAL_TASKS = ("gated_start_sample_best", "zero_start_best"), ("eurosat", "dtd10")
MINIATURE_ROWS = ("linear", "shallow", "shallow_at_6", "gated")


def pooled_deviation(cells: Iterable[Sequence[float]]) -> float:
    """Root of the mean variance over seeds of all cells that have several, at least `AT_LEAST`."""
    several = [variance(values) for values in cells if len(values) > 1]
    return max(AT_LEAST, math.sqrt(mean(several)) if several else 0.0)


def tolerance(committed: Sequence[float], pooled: float) -> float:
    """Three deviations of the difference between one new run and the mean of the committed ones, in points."""
    own = stdev(committed) if len(committed) > 1 else 0.0
    return 3 * max(own, pooled) * math.sqrt(1 + 1 / len(committed))


def is_outside(name: str, new: float, committed: float, allowed: float) -> bool:
    """Print the comparison, in percent. True where it is too far off."""
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
        for row in real.ROWS
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
                new = real.execute(runs[0], l2, task, backbone, NEW_SEED)
                values = [100 * run["test"] for run in runs]
                what = f"{name}, {row}, seed {NEW_SEED}"
                outside += is_outside(what, 100 * new["test"], mean(values), tolerance(values, pooled))
    return outside


def _check_probes(task: tasks.Task, committed: records.Record, backbone: Path) -> int:
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
