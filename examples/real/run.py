# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Run the cells that are missing, the most telling first; each leaves a JSON file, so stop and go on at any time.

python examples/real_backbone.py run --backbone FOLDER --data_dir FOLDER
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import frozen_rows, grid, images, records
from .features import block_features
from .heads import frozen_heads, standardised_head
from .training import Bench, execute

RESULTS = Path(__file__).parent / "results"


def order() -> Iterator[tuple[str, str, int]]:
    """All final cells (task, row, seed) as they should come.

    First the rows that decide what is recommended, after the chosen block and from a fitted head; then those after the
    last block, which take longer.
    """
    deciding = [
        f"{row}_best" for row in ("gated_start_sample_half", "gated_start_sample", "lora8_start", "deep_start_sample")
    ]
    yield from ((task, row, 0) for row in deciding for task in ("eurosat", "dtd10"))
    yield from ((task, row, seed) for seed in grid.SEEDS for task in images.TASKS for row in deciding)
    yield from (("eurosat", row, 0) for row in ("gated_start_best", "shallow", "gated_start_sample", "lora8_start"))
    yield from (("eurosat", row, 0) for row in ("deep", "gated", "lora8", "temperature_only", "gate_only"))
    yield from ((task, "zero_start_best", 0) for task in images.TASKS)
    few = ("gated_start_sample_half_1_best", "gated_start_sample_half_3_best")
    yield from ((task, row, seed) for seed in grid.SEEDS for task in images.TASKS for row in few)
    yield from ((task, "gated_start_best", seed) for seed in grid.SEEDS for task in images.TASKS)
    yield from (("eurosat", row, seed) for seed in grid.SEEDS for row in grid.ROWS)
    yield from ((task, row, seed) for seed in grid.SEEDS for task in images.TASKS for row in grid.ROWS)


class Runner:
    """Runs cells of all kinds and writes them to `results`."""

    def __init__(self, backbone: Path, data_dir: Path, kept_in: Path, results: Path) -> None:
        self.backbone, self.data_dir, self.kept_in, self.results = backbone, data_dir, kept_in, results
        self.task = lru_cache(maxsize=1)(lambda name: images.load(name, data_dir))

    def found(self) -> dict[tuple[str, str], dict[str, Any]]:
        return records.read(self.results)

    def frozen(self, task: str) -> None:
        """The rows that train nothing but heads: they come first, since the others read what they choose."""
        self._once(task, "nearest", lambda: frozen_rows.neighbours(self.task(task), self.backbone, self.kept_in))
        for block in sorted({self.probe(task)["chosen_block"], grid.LAST}):
            self._heads(task, block)
            self._standardised(task, block)

    def probe(self, task: str) -> dict[str, Any]:
        """The logistic regression on every block."""
        return self._once(task, "probe", lambda: frozen_rows.every_block(self.task(task), self.backbone, self.kept_in))

    def train(self, cell: grid.Cell, found: grid.Found) -> dict[str, Any]:
        """One training run, with the block and the rate of the head that are chosen in `found`."""
        row, probe = grid.ROWS[cell.row], found[cell.task, "probe"]
        read = probe["chosen_block"] if row.best_block else grid.LAST
        head = found[cell.task, f"heads-block{read}"]["attentive" if row.attentive else "linear"]
        bench = Bench(self.task(cell.task), self.backbone, read, head["rate"], probe["strengths"][read - 1])
        return self._once(cell.task, cell.name, lambda: execute(cell, bench))

    def _heads(self, task: str, block: int) -> None:
        self._once(task, f"heads-block{block}", lambda: frozen_heads(self.task(task), self.backbone, block))

    def _standardised(self, task: str, block: int) -> None:
        def make() -> dict[str, Any]:
            features = block_features(self.task(task), self.backbone, self.kept_in)
            return standardised_head(self.task(task), features, block)

        self._once(task, f"standardised-block{block}", make)

    def _once(self, task: str, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = records.path_of(self.results, task, name)
        if not file.is_file():
            records.write(file, make())
        return self.found()[task, name]


def missing(wanted: Iterable[tuple[str, str, int]], found: grid.Found) -> Iterator[grid.Cell]:
    """The next cells on the way to each wanted one, as far as they can run now."""
    for task, row, seed in wanted:
        yield from grid.steps_to(task, row, seed, found)


def main(args: Namespace) -> None:
    """Run until nothing is missing."""
    runner = Runner(args.backbone, args.data_dir, args.output_dir / "features", args.results)
    for task in args.tasks:
        runner.frozen(task)
    wanted = [cell for cell in order() if cell[0] in args.tasks and cell[1] in (args.rows or grid.ROWS)]
    while (cell := next(missing(wanted, runner.found()), None)) is not None:
        begin = time.perf_counter()
        result = runner.train(cell, runner.found())
        test = f", test {result['test']:.4f}" if cell.is_final else ""
        seconds = time.perf_counter() - begin
        print(f"{cell.task} {cell.name}: val {result['val']:.3f}{test}, {seconds:.0f} s", flush=True)
