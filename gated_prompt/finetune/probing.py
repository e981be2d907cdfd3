# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone: nearest neighbours and a linear probe on every block, by scikit-learn."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor
from tqdm import tqdm

from .block_probes import GRID, logistic_regression
from .features import BlockFeatures
from .image_set import CLASSES, LABELS, ImageSet
from .metrics import Measure

NEIGHBOURS = 20
TENSORS = ("weight", "bias", "scores")


@dataclass(frozen=True)
class Probe:
    """The best linear probe of one block: weight (K, F) and bias (K,) on its features, and its scores."""

    block: int
    c: float
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
    """Nearest neighbours and the best probe over C of every block, from the first to the last."""
    results = []
    for block in tqdm(range(train.num_blocks), "probe every block", leave=False, disable=not show):
        x, x_val = train[block], validation[block]
        probe = fit_probe(block, x, x_val, train_set, validation_set.targets, measure, class_weights)
        near = neighbour_scores(x, x_val, train_set)
        value = measure(near, validation_set.targets)
        results.append(BlockResult(block, value, probe, measure(probe.scores, validation_set.targets)))
    return results


def best_block(results: list[BlockResult]) -> BlockResult:
    """The block whose probe is best on validation; of equals the first, which is the cheapest to run."""
    return max(results, key=lambda result: (result.probe.gain, -result.block))


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
    """The probe of the C from `GRID` that is best on validation; of equals the one with the stronger penalty."""
    scaler = StandardScaler().fit(x.double().numpy())
    inputs = scaler.transform(x.numpy())
    best: Probe | None = None
    for c in GRID:
        weight, bias = _fit(inputs, data, c, class_weights)
        weight = weight / scaler.scale_
        bias = bias - weight @ scaler.mean_
        folded = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
        scores = x_val @ folded[0].T + folded[1]
        gain = measure.gain(scores, targets)
        if best is None or gain > best.gain:
            best = Probe(block, c, *folded, scores, gain)
    assert best is not None  # the grid is not empty
    return best


def _fit(x: np.ndarray, data: ImageSet, c: float, class_weights: list[float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight (K, F) and bias (K,)."""
    count, y = len(data.names), data.targets.numpy()
    if data.problem not in (CLASSES, LABELS):
        ridge = Ridge(alpha=1 / c).fit(x, y)
        return np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
    if data.problem == LABELS:
        return _one_vs_rest(x, y, c, class_weights or [1.0] * count)
    return logistic_regression(x, y, count, c, dict(enumerate(class_weights)) if class_weights else None)


def _one_vs_rest(x: np.ndarray, y: np.ndarray, c: float, weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    count = y.sum(0)
    weight, bias = np.zeros((y.shape[1], x.shape[1])), np.log((count + 0.5) / (len(y) - count + 0.5))
    for place in np.flatnonzero((count > 0) & (count < len(y))):
        both = logistic_regression(x, y[:, place].astype(int), 2, c, {0: 1.0, 1: weights[place]})
        weight[place], bias[place] = (pair[1] - pair[0] for pair in both)
    return weight, bias


def save_results(file: Path, results: list[BlockResult]) -> None:
    """Write results atomically."""
    tensors: dict[str, Tensor] = {}
    numbers = []
    for result in results:
        tensors |= {f"{result.block}.{name}": getattr(result.probe, name).contiguous() for name in TENSORS}
        numbers.append([result.block, result.neighbours, result.probe_value, result.probe.c, result.probe.gain])
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, {"results": json.dumps(numbers)})
    os.replace(partial, file)


def load_results(file: Path) -> list[BlockResult]:
    """Read what `save_results` wrote."""
    with safe_open(file, "pt") as stored:
        numbers = json.loads(stored.metadata()["results"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 # no mapping
    results = []
    for block, neighbours, value, c, gain in numbers:
        weight, bias, scores = (tensors[f"{block}.{name}"] for name in TENSORS)
        probe = Probe(block, c, weight, bias, scores, gain)
        results.append(BlockResult(block, neighbours, probe, value))
    return results
