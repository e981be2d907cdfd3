# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The rows that train nothing in the backbone: nearest neighbours, and a logistic regression on each block."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

Split = tuple[np.ndarray, np.ndarray]  # features (N, F), classes (N,)
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse regularisation C, chosen on the validation images
NEVER = -1e4  # bias of a class without training images
NEIGHBOURS = (1, 3, 5, 10, 20)


def fit_probe(train: Split, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (classes, F) and biases (classes,) of a logistic regression on standardised features.

    The standardisation is folded in, so that they apply to the features as they are and can start a head.
    """
    x, y = train
    mean, std = x.mean(0), x.std(0) + 1e-6
    model = LogisticRegression(C=strength, max_iter=2000).fit((x - mean) / std, y)
    if len(model.classes_) == 2 and model.coef_.shape[0] == 1:
        raise ValueError("two classes: this probe is written for more")
    weights = np.zeros((int(y.max()) + 1, x.shape[1]))
    biases = np.full(len(weights), NEVER)
    weights[model.classes_] = model.coef_ / std
    biases[model.classes_] = model.intercept_ - model.coef_ @ (mean / std)
    return weights, biases


def correct(probe: tuple[np.ndarray, np.ndarray], data: Split) -> float:
    """Share of images that the probe classifies correctly."""
    weights, biases = probe
    return float(((data[0] @ weights.T + biases).argmax(1) == data[1]).mean())


def choose_strength(train: Split, val: Split) -> tuple[float, float]:
    """The regularisation with the best validation accuracy (ties: the strongest), and that accuracy."""
    scores = [(correct(fit_probe(train, strength), val), strength) for strength in STRENGTHS]
    best = max(score for score, _ in scores)
    return next(strength for score, strength in scores if score == best), best


def nearest(train: Split, data: Split, neighbours: int) -> float:
    """Accuracy of k nearest neighbours by cosine, each vote weighted by its similarity."""
    bank, query = (torch.nn.functional.normalize(torch.from_numpy(x), dim=1) for x in (train[0], data[0]))
    similar, index = (query @ bank.T).topk(neighbours, dim=1)
    labels = torch.from_numpy(train[1])[index]
    votes = torch.zeros(len(query), int(train[1].max()) + 1, dtype=similar.dtype).scatter_add_(1, labels, similar)
    return float((votes.argmax(1) == torch.from_numpy(data[1])).float().mean())
