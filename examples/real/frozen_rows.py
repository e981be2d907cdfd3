# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The cells of the frozen rows: nearest neighbours on the last block, and the probe of every block."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import probes
from .features import block_features
from .images import Task

DEPTH = 12


def splits(features: dict[str, torch.Tensor], task: Task, block: int) -> dict[str, probes.Split]:
    """By part, what a head would read after `block` blocks, and the classes."""
    return {
        part: (features[part][:, block - 1].double().numpy(), images.labels.numpy())
        for part, images in task.parts.items()
    }


def neighbours(task: Task, backbone: Path, kept_in: Path) -> dict[str, Any]:
    """k nearest neighbours on the last block, k chosen on the validation images."""
    data = splits(block_features(task, backbone, kept_in), task, DEPTH)
    scores = {k: probes.nearest(data["train"], data["val"], k) for k in probes.NEIGHBOURS}
    k = max(scores, key=lambda k: scores[k])
    return {"neighbours": k, "val": scores[k], "test": probes.nearest(data["train"], data["test"], k)}


def every_block(task: Task, backbone: Path, kept_in: Path) -> dict[str, Any]:
    """The probe of each block: regularisation and validation and test accuracy by block, and the chosen block."""
    begin = time.process_time()
    features = block_features(task, backbone, kept_in)
    strengths, val, test = [], [], []
    for block in range(1, DEPTH + 1):
        data = splits(features, task, block)
        strength, score = probes.choose_strength(data["train"], data["val"])
        strengths.append(strength)
        val.append(score)
        test.append(probes.correct(probes.fit_probe(data["train"], strength), data["test"]))
    return {
        "strengths": strengths,
        "val": val,
        "test": test,
        "chosen_block": 1 + int(np.argmax(val)),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }
