# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The parts of the labelled images: what is held back, and which images a probe is fitted to and scored on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .image_set import REGRESSION, SINGLE_LABEL, ImageSet

BINS = 10  # bins of numbers, so that numbers of every size are held back


@dataclass(frozen=True)
class Parts:
    """The images to train on, those that choices are made by, and those, if any, that are scored at the end.

    `keys`: a fingerprint of each part by its name. `left_out`: files and images -> why.
    `contradictions`: images with the same content and different labels.
    `held_back`: the validation part is one of the training images.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet | None
    keys: dict[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    contradictions: Sequence[str] = ()
    held_back: bool = False


def hold_back(data: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Train and validation part. Each class gives `share` of its images, one at least, and keeps one at least.

    A class with a single image keeps it. Images with several labels are held back at random.

    Raises:
        DataError: the share is not between 0 and 1, or nothing is left to hold back.
    """
    if not 0 < share < 1:
        raise DataError(f"--validation_share is {share}. Expected a number between 0 and 1.")
    rng = np.random.default_rng(seed)
    held: list[int] = []
    for members in _strata(data):
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held += rng.permutation(members)[:count].tolist()
    if not held:
        raise DataError(f"every class of {data.source} has a single image. None can be held back for validation.")
    kept = sorted(set(range(len(data))) - set(held))
    return data.take(kept), data.take(sorted(held))


def draw_shots(data: ImageSet, shots: int, seed: int) -> ImageSet:
    """At most `shots` images of each class.

    Raises:
        DataError: the images have no classes, or the count is below 1.
    """
    if shots < 1 or data.problem != SINGLE_LABEL:
        raise DataError(f"--shots {shots}: at least 1 is needed, and one class for each image")
    rng = np.random.default_rng(seed)
    return data.take(sorted(i for members in _strata(data) for i in rng.permutation(members)[:shots].tolist()))


def _strata(data: ImageSet) -> list[np.ndarray]:
    if data.problem == SINGLE_LABEL:
        return [members for label in range(len(data.names)) if len(members := _where(data.targets == label))]
    if data.problem == REGRESSION:
        order = data.targets[:, 0].argsort(stable=True).numpy()
        return [part for part in np.array_split(order, min(BINS, max(1, len(order) // 2))) if len(part)]
    return [np.arange(len(data))]


def _where(mask: Tensor) -> np.ndarray:
    return mask.nonzero()[:, 0].numpy()


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
        """Return as many folds as the held-back share goes into 1, if the user gave no validation part."""
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
    """Indices in an order in which neighbours are of the same class, or of similar size. Random within."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data)))
    if data.problem == SINGLE_LABEL:
        return order[data.targets[order].argsort(stable=True)]
    return order[data.targets[order, 0].argsort(stable=True)] if data.problem == REGRESSION else order
