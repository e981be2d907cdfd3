# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone: nearest neighbours and a linear probe on every block."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import normalize
from torch import Tensor
from tqdm import tqdm

from ..predictor import PROBLEM_TYPES
from ..starts.linear_probe import STRENGTHS, fit_path
from .features import BlockFeatures
from .image_set import CLASSES, LABELS, ImageSet
from .metrics import Measure

NEIGHBOURS = 20
TENSORS = ("weight", "bias", "scores")


@dataclass(frozen=True)
class Probe:
    """The best linear probe of one block: weight (K, F) and bias (K,) on its features, and its scores."""

    block: int
    l2: float
    weight: Tensor
    bias: Tensor
    scores: Tensor  # (N, K) on validation
    gain: float


@dataclass(frozen=True)
class BlockResult:
    """One block: the measure of its nearest neighbours, and its probe."""

    block: int
    neighbours: float
    probe: Probe
    probe_value: float


def probe_blocks(
    train: BlockFeatures,
    validation: BlockFeatures,
    train_set: ImageSet,
    validation_set: ImageSet,
    measure: Measure,
    class_weights: list[float] | None,
    show: bool,
) -> list[BlockResult]:
    """Nearest neighbours and the best probe of every block, from the first to the last."""
    results = []
    for block in tqdm(range(train.num_blocks), "probe every block", leave=False, disable=not show):
        x, x_val = train[block], validation[block]
        probe = fit_probe(block, x, x_val, train_set, validation_set.targets, measure, class_weights)
        near = neighbour_scores(x, x_val, train_set)
        value = measure(near, validation_set.targets)
        results.append(BlockResult(block, value, probe, measure(probe.scores, validation_set.targets)))
    return results


def best_block(results: list[BlockResult]) -> BlockResult:
    """The block whose probe is best on validation; of equals the lowest, which costs least."""
    return max(results, key=lambda result: result.probe.gain)


def neighbour_scores(x: Tensor, x_val: Tensor, data: ImageSet) -> Tensor:
    """Mean label of the nearest images by cosine, weighted by closeness, as scores (N, K)."""
    targets = torch.nn.functional.one_hot(data.targets, len(data.names)) if data.problem == CLASSES else data.targets
    model = KNeighborsRegressor(min(NEIGHBOURS, len(x)), weights=_closeness, metric="euclidean")
    model.fit(normalize(x.numpy()), targets.double().numpy())
    found = torch.from_numpy(model.predict(normalize(x_val.numpy()))).float().reshape(len(x_val), -1)
    return torch.logit(found.clamp(1e-6, 1 - 1e-6)) if data.problem == LABELS else found


def _closeness(distances: np.ndarray) -> np.ndarray:
    """exp(cosine / 0.07) of unit vectors, up to a factor: the weights of DINO's evaluation."""
    return np.exp(-(distances**2) / (2 * 0.07))


def fit_probe(
    block: int,
    x: Tensor,
    x_val: Tensor,
    data: ImageSet,
    targets: Tensor,
    measure: Measure,
    class_weights: list[float] | None,
) -> Probe:
    """The probe of the strength that is best on validation; of equals the one with the stronger penalty."""
    weights = None if class_weights is None else torch.tensor(class_weights)
    fits = fit_path(x, data.targets, len(data.names), PROBLEM_TYPES[data.problem], class_weights=weights)
    found = []
    for l2, (weight, bias) in zip(STRENGTHS, fits, strict=True):
        scores = x_val @ weight[0].T + bias[0]
        found.append(Probe(block, l2, weight[0], bias[0], scores, measure.gain(scores, targets)))
    return max(found, key=lambda probe: probe.gain)


def save_results(file: Path, results: list[BlockResult]) -> None:
    """Write results atomically."""
    tensors: dict[str, Tensor] = {}
    numbers = []
    for result in results:
        tensors |= {f"{result.block}.{name}": getattr(result.probe, name).contiguous() for name in TENSORS}
        numbers.append([result.block, result.neighbours, result.probe_value, result.probe.l2, result.probe.gain])
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, {"results": json.dumps(numbers)})
    os.replace(partial, file)


def load_results(file: Path) -> list[BlockResult]:
    """Read what `save_results` wrote."""
    with safe_open(file, "pt") as stored:
        numbers = json.loads(stored.metadata()["results"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 # no mapping
    results = []
    for block, neighbours, value, l2, gain in numbers:
        weight, bias, scores = (tensors[f"{block}.{name}"] for name in TENSORS)
        probe = Probe(block, l2, weight, bias, scores, gain)
        results.append(BlockResult(block, neighbours, probe, value))
    return results
