# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The rows of the race that train nothing in the backbone.

Blocks and penalties are chosen by five stratified folds of the labelled images. Then the probe is fitted to all of
them, and scored once on the test images. `test_one_fold` is what the probe of four fifths reaches there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gated_prompt.starts.linear_probe import PROBLEMS, STRENGTHS, fit_path

from .draws import Pool, folds
from .records import Record

DEPTH = 12
NEIGHBOURS = (1, 3, 5, 10, 20)


@dataclass(frozen=True)
class Choice:
    """Blocks, the L2 penalty of their probe, and its accuracy out of fold."""

    blocks: tuple[int, ...]
    l2: float
    accuracy: float


def read(features: Tensor, blocks: Sequence[int]) -> Tensor:
    """(N, F times blocks) of the features (N, L, F) of all blocks."""
    return features[:, list(blocks)].flatten(1).float()


def neighbours_of(block: int) -> tuple[int, ...]:
    """A block with the ones below and above it."""
    return tuple(range(max(0, block - 1), min(DEPTH, block + 2)))


def score(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Share of images that a probe classifies correctly."""
    return round(float((F.linear(x, weight, bias).argmax(1) == labels).float().mean()), 5)


def choose(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> tuple[list[Choice], Choice]:
    """The choice of every single block, and of the block set. Ties take fewer and lower blocks, larger penalties."""
    parts = folds(labels, seed)
    used = torch.ones(len(parts), len(labels), dtype=torch.bool)
    for row, (_, held) in enumerate(parts):
        used[row, held] = False

    def out_of_fold(blocks: tuple[int, ...]) -> Choice:
        x, accuracies = read(features, blocks), []
        for weights, biases in fit_path(x, labels, num_classes, PROBLEMS[0], used=used):
            right = [
                F.linear(x[held], weight, bias).argmax(1) == labels[held]
                for (_, held), weight, bias in zip(parts, weights, biases, strict=True)
            ]
            accuracies.append(float(torch.cat(right).float().mean()))
        best = max(range(len(STRENGTHS)), key=lambda index: accuracies[index])
        return Choice(blocks, STRENGTHS[best], accuracies[best])

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
    used = torch.ones(2, len(labels), dtype=torch.bool)
    used[1, folds(labels, number)[0][1]] = False

    def record(row: str, choice: Choice) -> Record:
        x, x_test = read(features, choice.blocks), read(test, choice.blocks)
        ((weights, biases),) = fit_path(x, labels, pool.num_classes, PROBLEMS[0], [choice.l2], used=used)
        whole, part = (score(x_test, test_labels, *probe) for probe in zip(weights, biases, strict=True))
        size = pool.num_classes * (x.shape[1] + 1)
        return {
            "row": row,
            "blocks": list(choice.blocks),
            "l2": choice.l2,
            "out_of_fold": round(choice.accuracy, 5),
            "test": whole,
            "test_one_fold": part,
            "num_trainable_params": size,
            "file_size": 4 * size,
        }

    best = max(single, key=lambda choice: choice.accuracy)
    rows = [
        _nearest(features, labels, test, test_labels, number),
        record("last block", single[-1]),
        record("best block", best),
        record("block set", chosen),
    ]
    seconds = round(time.process_time() - begin, 1)
    by_block = [round(choice.accuracy, 5) for choice in single]
    shared = {"task": pool.name, "draw": number}
    return [{**shared, **one, "cpu_seconds": seconds, "out_of_fold_by_block": by_block} for one in rows]


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


def nearest_hits(bank: Tensor, labels: Tensor, x: Tensor, y: Tensor, neighbours: int) -> Tensor:
    """Which images k nearest neighbours by cosine classify correctly, each vote weighted by its similarity."""
    similar, index = (F.normalize(x, dim=1) @ F.normalize(bank, dim=1).T).topk(neighbours, dim=1)
    votes = torch.zeros(len(x), 1 + int(labels.max())).scatter_add_(1, labels[index], similar)
    return votes.argmax(1) == y
