# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The rows of the race that train nothing in the backbone.

Blocks and penalties are chosen by five stratified folds of the labelled images; then the probe is fitted to all of
them, and scored once on the test images. `test_one_fold` is what the probe of four fifths reaches there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .draws import Pool, folds
from .probe import NEIGHBOURS, STRENGTHS, fit_path, hits, nearest_hits
from .records import Record

DEPTH = 12
ROWS = ("nearest neighbours", "last block", "best block", "block set")


@dataclass(frozen=True)
class Choice:
    """Blocks, their strength C, and the accuracy out of fold."""

    blocks: tuple[int, ...]
    strength: float
    accuracy: float


def read(features: Tensor, blocks: Sequence[int]) -> Tensor:
    """(N, F times blocks) of the features (N, L, F) of all blocks."""
    return features[:, list(blocks)].flatten(1).float()


def neighbours_of(block: int) -> tuple[int, ...]:
    """A block with the ones below and above it."""
    return tuple(range(max(0, block - 1), min(DEPTH, block + 2)))


def choose(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> tuple[list[Choice], Choice]:
    """The choice of every single block, and of the block set; ties take fewer and lower blocks, smaller strengths."""
    parts = folds(labels, seed)

    def out_of_fold(blocks: tuple[int, ...]) -> Choice:
        x, right = read(features, blocks), torch.zeros(len(STRENGTHS), len(labels))
        for fit, held in parts:
            for row, probe in enumerate(fit_path(x[fit], labels[fit], num_classes)):
                right[row, held] = hits(probe, x[held], labels[held]).float()
        accuracies = right.mean(1)
        best = int(accuracies.argmax())
        return Choice(blocks, STRENGTHS[best], float(accuracies[best]))

    single = [out_of_fold((block,)) for block in range(DEPTH)]
    best = max(single, key=lambda choice: choice.accuracy)
    several = [out_of_fold(blocks) for blocks in (neighbours_of(best.blocks[0]), tuple(range(2, DEPTH, 3)))]
    return single, max((*single, *several), key=lambda choice: choice.accuracy)


def run(pool: Pool, number: int) -> list[Record]:
    """The records of all rows on one draw."""
    begin, draw = time.process_time(), pool.draw(number)
    features, labels = pool.features["blocks"][draw.labelled], pool.labels[draw.labelled]
    test, test_labels = pool.features["blocks"][draw.test], pool.labels[draw.test]
    single, chosen = choose(features, labels, pool.num_classes, seed=number)
    first = folds(labels, number)[0][0]

    def record(row: str, choice: Choice) -> Record:
        x, x_test = read(features, choice.blocks), read(test, choice.blocks)
        whole, part = (
            hits(fit_path(x[index], labels[index], pool.num_classes, [choice.strength])[0], x_test, test_labels)
            for index in (torch.arange(len(labels)), first)
        )
        size = pool.num_classes * (x.shape[1] + 1)
        return {
            "row": row,
            "blocks": list(choice.blocks),
            "strength": choice.strength,
            "out_of_fold": round(choice.accuracy, 5),
            "test": round(float(whole.float().mean()), 5),
            "test_one_fold": round(float(part.float().mean()), 5),
            "num_trainable_params": size,
            "file_size": 4 * size,
        }

    best = max(single, key=lambda choice: choice.accuracy)
    records = [
        _nearest(features, labels, test, test_labels, number),
        record("last block", single[-1]),
        record("best block", best),
        record("block set", chosen),
    ]
    seconds = round(time.process_time() - begin, 1)
    by_block = {"out_of_fold_by_block": [round(choice.accuracy, 5) for choice in single]}
    return [{"task": pool.name, "draw": number, **one, "cpu_seconds": seconds, **by_block} for one in records]


def _nearest(features: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, seed: int) -> Record:
    x, x_test = read(features, [DEPTH - 1]), read(test, [DEPTH - 1])
    right = torch.zeros(len(NEIGHBOURS), len(labels))
    parts = folds(labels, seed)
    for fit, held in parts:
        for row, count in enumerate(NEIGHBOURS):
            right[row, held] = nearest_hits(x[fit], labels[fit], x[held], labels[held], count).float()
    best = int(right.mean(1).argmax())

    def score(index: Tensor) -> float:
        found = nearest_hits(x[index], labels[index], x_test, test_labels, NEIGHBOURS[best])
        return round(float(found.float().mean()), 5)

    return {
        "row": "nearest neighbours",
        "blocks": [DEPTH - 1],
        "neighbours": NEIGHBOURS[best],
        "out_of_fold": round(float(right.mean(1)[best]), 5),
        "test": score(torch.arange(len(labels))),
        "test_one_fold": score(parts[0][0]),
        "num_trainable_params": 0,
        "file_size": 2 * x.numel(),
    }
