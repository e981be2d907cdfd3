# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The miniature's small backbones and tasks: does what helps on the real backbone help there?

    python examples/real_backbone.py miniature --data_dir FOLDER

For each backbone and task: the probe of every block, trained linear and attentive heads on the chosen block, and the
rows of `endings.ROWS` with the rates that won on the real backbone. The token before the patches is the CLS token, as
on the real backbone.
"""

from argparse import Namespace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from transformers import ViTModel

from miniature.data import TASKS, MiniTask, load
from miniature.grid import BACKBONES

from . import grid, probes, records
from .cells import Found, markdown
from .endings import ENDINGS, ROWS
from .features import head_input
from .heads import head_race, standardised_race
from .images import Part, Task
from .reader import AttentiveHead, LinearHead
from .training import Bench, execute

FOLDER = Path(__file__).parents[1] / "backbones"
QUERIES = 8
HEADS = {
    "linear": "linear head",
    "standardised": "linear head on standardised features",
    "attentive": f"attentive head, {QUERIES} queries",
}


class Prepared(Part):
    """Pixels that are normalised already."""

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        return self.pixels[index]


@torch.inference_mode()
def block_tokens(backbone: Path, task: MiniTask, block: int) -> dict[str, torch.Tensor]:
    """Normed tokens (N, 1 + patches, D) after `block` blocks, by part."""
    model = ViTModel.from_pretrained(backbone, num_hidden_layers=block, add_pooling_layer=False, dtype=torch.float32)
    return {
        part: torch.cat([model.eval()(batch).last_hidden_state for batch in pixels.split(100)])
        for part, (pixels, _) in task.parts.items()
    }


def measure(backbone: Path, task: MiniTask) -> dict[str, Any]:
    """Accuracies of the probe by block, and of both heads on the block that it chooses."""
    labels = {part: values for part, (_, values) in task.parts.items()}
    found: dict[str, Any] = {"val": [], "test": [], "strengths": []}
    for block in range(1, grid.LAST + 1):
        tokens = block_tokens(backbone, task, block)
        data = {part: (head_input(tokens[part]).double().numpy(), labels[part].numpy()) for part in tokens}
        strength, score = probes.choose_strength(data["train"], data["val"])
        found["strengths"].append(strength)
        found["val"].append(score)
        found["test"].append(probes.correct(probes.fit_probe(data["train"], strength), data["test"]))
    found["chosen_block"] = 1 + int(np.argmax(found["val"]))
    tokens = block_tokens(backbone, task, found["chosen_block"])
    width, classes = tokens["train"].shape[-1], len(task.class_names)
    inputs = {part: head_input(values) for part, values in tokens.items()}
    found["standardised"] = standardised_race(inputs, labels, classes)
    found["linear"] = head_race(lambda: LinearHead(width, classes), tokens, labels)
    found["attentive"] = head_race(lambda: AttentiveHead(width, classes, QUERIES), tokens, labels)
    return found


def train(name: str, backbone: Path, task: MiniTask, frozen: dict[str, Any], cell: grid.Cell) -> dict[str, Any]:
    """One run of a row on the chosen block; `frozen` is what `measure` returned."""
    block = frozen["chosen_block"]
    parts: dict[str, Part] = {part: Prepared(*values) for part, values in task.parts.items()}
    rate, strength = frozen["linear"]["rate"], frozen["strengths"][block - 1]
    return execute(cell, Bench(Task(name, parts, len(task.class_names)), backbone, block, rate, strength))


def table(found: Found) -> str:
    """Validation / test accuracy of the frozen rows by backbone and task."""
    rows = [["backbone, task", "probe, last block", "probe, chosen block", *HEADS.values()]]
    for backbone, task in product(BACKBONES, TASKS):
        cell = found.get(("miniature", f"{backbone}-{task}"))
        if cell is None:
            continue
        last, chosen = (_pair(cell["val"][k - 1], cell["test"][k - 1]) for k in (grid.LAST, cell["chosen_block"]))
        heads = [_pair(mean(cell[head]["val"]), mean(cell[head]["test"])) for head in HEADS]
        rows.append([f"{backbone}, {task}", last, f"{chosen} ({cell['chosen_block']})", *heads])
    return markdown(rows)


def _pair(val: float, test: float) -> str:
    return f"{100 * val:.1f} / {100 * test:.1f}"


def trained_table(found: Found) -> str:
    """Validation / test accuracy of the trained rows by backbone and task, means over the seeds, and their means."""
    ends = ("last epoch", "best epoch, or the probe")
    rows = [["backbone, task", "probe, chosen block", *(f"{name}: {end}" for name in ROWS.values() for end in ends)]]
    columns: list[list[tuple[float, float]]] = []
    for backbone, task in product(BACKBONES, TASKS):
        name = f"{backbone}-{task}"
        frozen = found.get(("miniature", name), {})
        cells = {row: runs(name, row, found) for row in ROWS}
        if frozen and all(len(of_row) == len(grid.SEEDS) for of_row in cells.values()):
            probe = frozen["val"][frozen["chosen_block"] - 1], frozen["test"][frozen["chosen_block"] - 1]
            scores = [[ENDINGS[end](run, probe) for run in cells[row]] for row in ROWS for end in ends]
            columns.append([probe, *((mean(v for v, _ in s), mean(t for _, t in s)) for s in scores)])
            rows.append([f"{backbone}, {task}", *(_pair(*pair) for pair in columns[-1])])
    if columns:
        means = [(mean(v for v, _ in column), mean(t for _, t in column)) for column in zip(*columns, strict=True)]
        rows.append(["mean", *(_pair(*pair) for pair in means)])
    return markdown(rows)


def runs(name: str, row: str, found: Found) -> list[dict[str, Any]]:
    """The finished runs of a row by seed."""
    cells = [grid.final(name, row, seed, found) for seed in grid.SEEDS]
    return [found[name, cell.name] for cell in cells if cell is not None and (name, cell.name) in found]


def main(args: Namespace) -> None:
    """Measure what has no record: the frozen rows of all, then the trained ones."""
    for backbone, task in product(BACKBONES, TASKS):
        file = records.path_of(args.results, "miniature", f"{backbone}-{task}")
        if not file.is_file():
            records.write(file, measure(FOLDER / BACKBONES[backbone], load(task, args.data_dir)))
            print(backbone, task, flush=True)
    for seed, backbone, task, row in product(grid.SEEDS, BACKBONES, TASKS, ROWS):
        name, found = f"{backbone}-{task}", records.read(args.results)
        cell = grid.final(name, row, seed, found)
        if cell is None or (name, cell.name) in found:  # no winner yet: its rates are raced by `run`
            continue
        folder, data = FOLDER / BACKBONES[backbone], load(task, args.data_dir)
        result = train(name, folder, data, found["miniature", name], cell)
        records.write(records.path_of(args.results, name, cell.name), result)
        print(f"{name} {cell.name}: val {result['val']:.3f}, test {result['test']:.3f}", flush=True)
