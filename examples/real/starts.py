# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What untrained prompts do to the frozen features: the probe of each task fitted again with prompts in place.

    python examples/real_backbone.py starts --data_dir FOLDER

Validation accuracy of the logistic regression after the chosen block, for prompts at block 0 and at every block
(deep), from every start that `initialize_prompts` knows. What a start disturbs, training has to win back.
"""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from gated_prompt.starts.initialize import METHODS

from . import grid, images, records
from .training import Bench, build, predict, scores, start_head

STARTS = ("random", *METHODS)
ROWS = ("gated_start_best", "deep_start_best")
SEEDS = (0, 1)


def with_start(row: str, start: str, bench: Bench, seed: int) -> float:
    """Validation accuracy of a probe of the features with untrained prompts in place."""
    spec = replace(grid.ROWS[row], start=None if start == "random" else start)
    model = build(spec, bench, seed)
    start_head(model, bench)
    val = bench.task.parts["val"]
    return scores(predict(model, val), val.labels)[0]


def main(args: Namespace) -> None:
    """Measure the starts that have no record."""
    found = records.read(args.results)
    for name in args.tasks:
        file = records.path_of(args.results, name, "starts")
        done: dict[str, Any] = dict(found.get((name, "starts"), {}))
        probe, task = found[name, "probe"], images.load(name, args.data_dir)
        block = probe["chosen_block"]
        bench = Bench(task, args.backbone, block, 0.0, probe["strengths"][block - 1])
        for row in ROWS:
            for start in STARTS:
                if f"{row} {start}" not in done:
                    done[f"{row} {start}"] = [with_start(row, start, bench, seed) for seed in SEEDS]
                    records.write(file, done)
                    print(name, row, start, done[f"{row} {start}"], flush=True)
