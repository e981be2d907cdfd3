# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Which images are held back for validation, and few of each class to train on: seeded, class by class."""

import numpy as np
from torch import Tensor

from ..errors import DataError
from .image_set import CLASSES, NUMBERS, ImageSet

BINS = 10  # of numbers, to hold back some of every size


def hold_back(data: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Train and validation part; each class gives `share` of its images, one at least, and keeps one at least.

    A class with a single image keeps it. Images with several labels are held back at random.

    Raises:
        DataError: the share is not between 0 and 1, or nothing is left to hold back.
    """
    if not 0 < share < 1:
        raise DataError(f"--validation_share is {share}; a part between 0 and 1 is needed")
    rng = np.random.default_rng(seed)
    held: list[int] = []
    for members in _strata(data):
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held += rng.permutation(members)[:count].tolist()
    if not held:
        raise DataError(f"every class of {data.source} has a single image; none can be held back for validation")
    kept = sorted(set(range(len(data))) - set(held))
    return data.take(kept), data.take(sorted(held))


def draw_shots(data: ImageSet, shots: int, seed: int) -> ImageSet:
    """At most `shots` images of each class.

    Raises:
        DataError: the images have no classes, or the count is below 1.
    """
    if shots < 1 or data.problem != CLASSES:
        raise DataError(f"--shots {shots}: at least 1 is needed, and one class for each image")
    rng = np.random.default_rng(seed)
    return data.take(sorted(i for members in _strata(data) for i in rng.permutation(members)[:shots].tolist()))


def _strata(data: ImageSet) -> list[np.ndarray]:
    if data.problem == CLASSES:
        return [members for label in range(len(data.names)) if len(members := _where(data.targets == label))]
    if data.problem == NUMBERS:
        order = data.targets[:, 0].argsort(stable=True).numpy()
        return [part for part in np.array_split(order, min(BINS, max(1, len(order) // 2))) if len(part)]
    return [np.arange(len(data))]


def _where(mask: Tensor) -> np.ndarray:
    return mask.nonzero()[:, 0].numpy()
