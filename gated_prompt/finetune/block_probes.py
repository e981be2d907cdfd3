# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Linear probes of classes by scikit-learn, and the block whose probe is best on validation."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

GRID = (0.001, 0.01, 0.1, 1.0, 10.0)  # C on standardised features


def logistic_regression(
    x: np.ndarray, y: np.ndarray, count: int, c: float, class_weights: Mapping[int, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (K, F) and bias (K,) for K = `count` classes; one without images gets a bias that never wins."""
    weights = class_weights and {label: class_weights[label] for label in np.unique(y)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties on separable data have no end
        model = LogisticRegression(C=c, max_iter=300, class_weight=weights).fit(x, y)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps the difference of the two
        coefficients = np.concatenate((-coefficients, coefficients)) / 2
        intercepts = np.concatenate((-intercepts, intercepts)) / 2
    weight, bias = np.zeros((count, x.shape[1])), np.full(count, -1e4)
    weight[model.classes_], bias[model.classes_] = coefficients, intercepts
    return weight, bias


def best_block(
    train: Sequence[Tensor], train_labels: Sequence[int], held: Sequence[Tensor], held_labels: Sequence[int]
) -> tuple[int, float]:
    """The block whose probe has the best validation accuracy, and that probe's C.

    `train` and `held`: features (N, F) of each block. Of equals the last block and the stronger penalty win.
    """
    found = []
    for block, (x, x_held) in enumerate(zip(train, held, strict=True)):
        scaler = StandardScaler().fit(x.double().numpy())
        inputs, other = scaler.transform(x.numpy()), scaler.transform(x_held.numpy())
        for c in GRID:
            weight, bias = logistic_regression(inputs, np.array(train_labels), max(train_labels) + 1, c)
            accuracy = float(((other @ weight.T + bias).argmax(1) == np.array(held_labels)).mean())
            found.append((accuracy, block, -c))
    _, block, negative = max(found)
    return block, -negative
