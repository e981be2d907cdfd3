# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Does `gated-prompt predict --unlike` find images unlike those of training, and does the score of a class?

    python examples/study/run.py strangers --data_dir FOLDER --backbone FOLDER

Strangers are a class that was held out, for each of the five largest classes, and the images of the other data sets.
Both scores are of the block that is best for the task, and the number is the area under the ROC curve against the test
images of known classes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from gated_prompt.finetune.familiarity import Familiar
from gated_prompt.starts.linear_probe import PROBLEMS, fit_path

from .draws import Pool
from .frozen_rows import read
from .records import Record

RESULTS = Path(__file__).parent / "results" / "strangers.jsonl"
BLOCKS = {"eurosat": 6, "flowers": 10, "dtd10": 6}  # the best ones of draw 0 of the race
L2 = 10.0
CLASSES, FROM_OTHERS = 5, 300


def run(pool: Pool, others: Sequence[Pool]) -> Iterator[Record]:
    """The records of a task; `others` are data sets of strangers."""
    block, labels, draw = BLOCKS[pool.name], pool.labels, pool.draw(0)
    x = read(pool.features["blocks"], [block])
    for number, held_out in enumerate(labels[draw.labelled].bincount().topk(CLASSES).indices.tolist()):
        seen = draw.labelled[labels[draw.labelled] != held_out]
        known = x[draw.test[labels[draw.test] != held_out]]
        strangers = {f"class {held_out}": x[labels == held_out]}
        if number == 0:
            strangers |= {one.name: read(one.features["blocks"][:FROM_OTHERS], [block]) for one in others}
        familiar, targets = Familiar.of(x[seen]), labels[seen].unique(return_inverse=True)[1]
        ((weight, bias),) = fit_path(x[seen], targets, 1 + int(targets.max()), PROBLEMS[0], [L2])

        def unsure(images: Tensor, weight: Tensor = weight[0], bias: Tensor = bias[0]) -> Tensor:
            return 1 - (images @ weight.T + bias).softmax(1).max(1).values

        for name, images in strangers.items():
            yield {
                "task": pool.name,
                "strangers": name,
                "unlike": _area(familiar.unlike(known), familiar.unlike(images)),
                "class_score": _area(unsure(known), unsure(images)),
            }


def _area(known: Tensor, strangers: Tensor) -> float:
    truth = torch.cat((torch.zeros(len(known)), torch.ones(len(strangers))))
    return round(float(roc_auc_score(truth.numpy(), torch.cat((known, strangers)).numpy())), 4)
