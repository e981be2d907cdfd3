# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Does the promise hold? Small tasks at random, each probed as `gated-prompt train` probes it, then tested.

    python examples/study/run.py promise --data_dir FOLDER --backbone FOLDER

A task is a few classes of a real data set with a few labelled images each. Blocks and penalty are chosen out of fold,
the probe is fitted to all labelled images, and the rest of the pool is the test part. The promise is the out-of-fold
accuracy with its 95 % interval; it holds if the test accuracy lies in the interval.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gated_prompt.finetune.division import Division, Parts, hold_back
from gated_prompt.finetune.image_set import SINGLE_LABEL, ImageSet, Picture
from gated_prompt.finetune.metrics import interval_of, main_measure
from gated_prompt.finetune.probing import study

from .draws import Pool
from .records import Record

TASKS = 25
CLASS_COUNTS = (2, 5)  # of a task, at least and at most
SHOTS = (15, 40)  # labelled images of a class
LEFT = 10  # images of a class that the test part keeps, at least
RESULTS = Path(__file__).parent / "results" / "promise.jsonl"


def draw(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of labelled and of test images, and the classes of a task."""
    rng = np.random.default_rng(seed)
    shots = int(rng.integers(SHOTS[0], SHOTS[1] + 1))
    counts = labels.bincount()
    large = (counts >= SHOTS[0] + LEFT).nonzero()[:, 0].numpy()
    most = min(CLASS_COUNTS[1], len(large))
    classes = np.sort(rng.choice(large, int(rng.integers(CLASS_COUNTS[0], most + 1)), replace=False))
    labelled, test = [], []
    for one in classes:
        members = rng.permutation((labels == int(one)).nonzero()[:, 0].numpy())
        count = min(shots, len(members) - LEFT)
        labelled.append(members[:count])
        test.append(members[count:])
    return tuple(torch.from_numpy(np.concatenate(parts)) for parts in (labelled, test, [classes]))  # type: ignore[return-value]


def run(pool: Pool, seed: int) -> Record:
    """The record of one task."""
    begin, features = time.process_time(), pool.features["blocks"]
    labelled, test, classes = draw(pool.labels, seed)
    targets, test_targets = (torch.searchsorted(classes, pool.labels[index]) for index in (labelled, test))
    pictures = [Picture(str(index), lambda: b"") for index in labelled.tolist()]
    images = ImageSet(pictures, targets, SINGLE_LABEL, tuple(map(str, classes.tolist())), pool.name)
    train, validation = hold_back(images, 0.2, seed)
    division = Division.of(Parts(train, validation, None, {}, held_back=True), 0.2, seed, refit=True)
    order = torch.tensor([int(one.name) for one in division.images.pictures])
    measure = main_measure(SINGLE_LABEL, "auto", len(classes))

    def read(blocks: Sequence[int], index: Tensor = order) -> Tensor:
        return features[index][:, list(blocks)].flatten(1).float()

    depth = features.shape[1]
    done = study(read, depth, range(depth), True, division, measure, None, show=False)
    scores, truth = done.chosen.scores, division.scored.targets
    low, high = interval_of(measure, scores, truth)
    found = measure(read(done.chosen.blocks, test) @ done.weight.T + done.bias, test_targets)
    return {
        "task": pool.name,
        "seed": seed,
        "classes": len(classes),
        "labelled": len(labelled),
        "test_images": len(test),
        "blocks": list(done.chosen.blocks),
        "promised": round(done.chosen.value, 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "test": round(found, 5),
        "holds": low <= found <= high,
        "cpu_seconds": round(time.process_time() - begin, 1),
    }
