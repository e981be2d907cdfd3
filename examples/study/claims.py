# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Two things that the command line tells its users, put to the test on real data sets.

`promise`: does the out-of-fold accuracy of `gated-prompt train` hold? A task is a few classes of a data set with a few
labelled images each. Blocks and penalty are chosen out of fold, the probe is fitted to all labelled images, and the
rest of the pool is the test part. The promise is the out-of-fold accuracy with its 95 % interval; it holds if the test
accuracy lies in the interval.

`strangers`: does `gated-prompt predict --unlike` find images unlike those of training, and does the score of a class?
Strangers are a class that was held out, for each of the five largest classes, and the images of the other data sets.
Both scores are of the block that is best for the task, and the number is the area under the ROC curve against the test
images of known classes.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from gated_prompt.finetune.division import Division, Parts, hold_back
from gated_prompt.finetune.familiarity import Familiar
from gated_prompt.finetune.image_set import SINGLE_LABEL, ImageSet, Picture
from gated_prompt.finetune.metrics import interval_of, main_measure
from gated_prompt.finetune.probing import study
from gated_prompt.starts.linear_probe import PROBLEMS, fit_path

from .draws import Pool
from .frozen_rows import read
from .records import Record

PROMISE, STRANGERS = (Path(__file__).parent / "results" / f"{name}.jsonl" for name in ("promise", "strangers"))
TASKS = 25
CLASS_COUNTS = (2, 5)  # of a task, at least and at most
SHOTS = (15, 40)  # labelled images of a class
LEFT = 10  # images of a class that the test part keeps, at least
BLOCKS = {"eurosat": 6, "flowers": 10, "dtd10": 6}  # the best ones of draw 0 of the race
L2 = 10.0
CLASSES, FROM_OTHERS = 5, 300


def draw_task(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
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


def promise(pool: Pool, seed: int) -> Record:
    """The record of one task."""
    begin, features = time.process_time(), pool.features["blocks"]
    labelled, test, classes = draw_task(pool.labels, seed)
    targets, test_targets = (torch.searchsorted(classes, pool.labels[index]) for index in (labelled, test))
    pictures = [Picture(str(index), lambda: b"") for index in labelled.tolist()]
    images = ImageSet(pictures, targets, SINGLE_LABEL, tuple(map(str, classes.tolist())), pool.name)
    train, validation = hold_back(images, 0.2, seed)
    division = Division.of(Parts(train, validation, None, {}, held_back=True), 0.2, seed, refit=True)
    order = torch.tensor([int(one.name) for one in division.images.pictures])
    measure = main_measure(SINGLE_LABEL, "auto", len(classes))

    def features_of(blocks: Sequence[int], index: Tensor = order) -> Tensor:
        return features[index][:, list(blocks)].flatten(1).float()

    depth = features.shape[1]
    done = study(features_of, depth, range(depth), True, division, measure, None, show=False)
    scores, truth = done.chosen.scores, division.scored.targets
    low, high = interval_of(measure, scores, truth)
    found = measure(features_of(done.chosen.blocks, test) @ done.weight.T + done.bias, test_targets)
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


def strangers(pool: Pool, others: Sequence[Pool]) -> Iterator[Record]:
    """The records of a task; `others` are data sets of strangers."""
    block, labels, draw = BLOCKS[pool.name], pool.labels, pool.draw(0)
    x = read(pool.features["blocks"], [block])
    for number, held_out in enumerate(labels[draw.labelled].bincount().topk(CLASSES).indices.tolist()):
        seen = draw.labelled[labels[draw.labelled] != held_out]
        known = x[draw.test[labels[draw.test] != held_out]]
        images_of = {f"class {held_out}": x[labels == held_out]}
        if number == 0:
            images_of |= {one.name: read(one.features["blocks"][:FROM_OTHERS], [block]) for one in others}
        familiar, targets = Familiar.of(x[seen]), labels[seen].unique(return_inverse=True)[1]
        ((weight, bias),) = fit_path(x[seen], targets, 1 + int(targets.max()), PROBLEMS[0], [L2])

        def unsure(images: Tensor, weight: Tensor = weight[0], bias: Tensor = bias[0]) -> Tensor:
            return 1 - (images @ weight.T + bias).softmax(1).max(1).values

        for name, images in images_of.items():
            yield {
                "task": pool.name,
                "strangers": name,
                "unlike": _area(familiar.unlike(known), familiar.unlike(images)),
                "class_score": _area(unsure(known), unsure(images)),
            }


def _area(known: Tensor, strangers: Tensor) -> float:
    truth = torch.cat((torch.zeros(len(known)), torch.ones(len(strangers))))
    return round(float(roc_auc_score(truth.numpy(), torch.cat((known, strangers)).numpy())), 4)
