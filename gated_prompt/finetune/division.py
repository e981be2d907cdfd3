# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Which labelled images a probe is fitted to and which it is scored on: folds, or the user's own validation part."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .image_set import CLASSES, NUMBERS, ImageSet
from .sources import Parts


@dataclass(frozen=True)
class Division:
    """All labelled images, the training part first.

    `fold` (N,): the fit that does not see an image and is scored on it; -1: all fits see it. Fold 0 is the validation
    part, which trained methods choose their rates and epochs by.
    """

    images: ImageSet
    fold: Tensor
    refit: bool

    @classmethod
    def of(cls, parts: Parts, share: float, seed: int, refit: bool) -> "Division":
        """As many folds as the held-back share goes into 1, where the user gave no validation part."""
        images = parts.train.joined(parts.validation)
        fold = torch.zeros(len(images), dtype=torch.int64)
        fold[: len(parts.train)] = -1
        if parts.held_back and refit:
            others = max(2, round(1 / share)) - 1
            order = _stratified(parts.train, seed)
            fold[order] = 1 + torch.arange(len(order)) % others
        return cls(images, fold, refit)

    @property
    def is_cross_validation(self) -> bool:
        return int(self.fold.max()) > 0

    @property
    def used(self) -> Tensor:
        """bool (T, N): the images that each of T fits sees."""
        return self.fold != torch.arange(int(self.fold.max()) + 1)[:, None]

    @property
    def held(self) -> Tensor:
        """Indices of the images that scores are about, (H,)."""
        return (self.fold >= 0).nonzero()[:, 0]

    @property
    def scored(self) -> ImageSet:
        return self.images.take(self.held.tolist())

    @property
    def validation(self) -> Tensor:
        """Which of the scored images are the validation part, bool (H,)."""
        return self.fold[self.held] == 0

    @property
    def final(self) -> Tensor:
        """Indices of the images that what is kept is fitted to: all of them, or the training part."""
        return torch.arange(len(self.fold)) if self.refit else (self.fold != 0).nonzero()[:, 0]

    def scores(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Scores (H, K) of features (N, F), each by the fit that has not seen it: weight (T, K, F), bias (T, K)."""
        found = x.new_empty(len(self.fold), bias.shape[1])
        for index in range(len(bias)):
            rows = self.fold == index
            found[rows] = x[rows] @ weight[index].T + bias[index]
        return found[self.held]


def _stratified(data: ImageSet, seed: int) -> Tensor:
    """Indices in an order in which neighbours are of the same class, or of similar size; random within."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data)))
    if data.problem == CLASSES:
        return order[data.targets[order].argsort(stable=True)]
    return order[data.targets[order, 0].argsort(stable=True)] if data.problem == NUMBERS else order
