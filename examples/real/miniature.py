# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen rows on the miniature's small backbones and tasks: does what helps on the real backbone help there?

    python examples/real_backbone.py miniature --data_dir FOLDER

For each backbone and task: the probe of every block, and trained linear and attentive heads on the chosen block. The
token before the patches is the CLS token, as on the real backbone. Then the runs of `miniature_runs`.
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

from . import grid, miniature_runs, probes, records
from .cells import Found, markdown
from .features import head_input
from .heads import head_race, standardised_race
from .reader import AttentiveHead, LinearHead

QUERIES = 8
HEADS = {
    "linear": "linear head",
    "standardised": "linear head on standardised features",
    "attentive": f"attentive head, {QUERIES} queries",
}


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
    found: dict[str, Any] = {"val": [], "test": []}
    for block in range(1, grid.LAST + 1):
        tokens = block_tokens(backbone, task, block)
        data = {part: (head_input(tokens[part]).double().numpy(), labels[part].numpy()) for part in tokens}
        strength, score = probes.choose_strength(data["train"], data["val"])
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


def table(found: Found) -> str:
    """Validation / test accuracy of the frozen rows by backbone and task."""
    rows = [["backbone, task", "probe, last block", "probe, chosen block", *HEADS.values()]]
    for backbone, task in product(BACKBONES, TASKS):
        cell = found.get(("miniature", f"{backbone}-{task}"))
        if cell is None:
            continue
        pairs = [(cell["val"][k - 1], cell["test"][k - 1]) for k in (grid.LAST, cell["chosen_block"])]
        last, chosen = map(miniature_runs.text, pairs)
        heads = [miniature_runs.text((mean(cell[head]["val"]), mean(cell[head]["test"]))) for head in HEADS]
        rows.append([f"{backbone}, {task}", last, f"{chosen} ({cell['chosen_block']})", *heads])
    return markdown(rows)


def main(args: Namespace) -> None:
    """Measure what has no record, seed by seed."""
    for seed, backbone, task in product(grid.SEEDS, BACKBONES, TASKS):
        name, folder = f"{backbone}-{task}", BACKBONES[backbone]
        file = records.path_of(args.results, "miniature", name)
        if not file.is_file():
            records.write(file, measure(folder, load(task, args.data_dir)))
            print(name, flush=True)
        found = records.read(args.results)
        cells = [grid.final(name, row, seed, found) for row in miniature_runs.TRAINED]
        open_cells = [cell for cell in cells if cell is not None and (name, cell.name) not in found]
        if open_cells:
            frozen, data = found["miniature", name], load(task, args.data_dir)
            tokens = block_tokens(folder, data, frozen["chosen_block"])
        for cell in open_cells:
            result = miniature_runs.train(name, folder, data, frozen, tokens, cell)
            records.write(records.path_of(args.results, name, cell.name), result)
            print(f"{name} {cell.name}: val {result['val']:.3f}, test {result['test']:.3f}", flush=True)
