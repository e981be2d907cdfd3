# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Class weights that make rare classes count as much as frequent ones."""

from ..errors import GatedPromptError
from .image_set import CLASSES, NUMBERS, ImageSet


def balanced_weights(data: ImageSet) -> list[float]:
    """Of classes N / (K n_k), as in scikit-learn; of labels the negatives for each positive, 1 where there are none.

    Raises:
        GatedPromptError: the images have numbers.
    """
    if data.problem == NUMBERS:
        raise GatedPromptError("--class_weights balanced is for classes and labels; these images have numbers")
    if data.problem == CLASSES:
        counts = data.targets.bincount(minlength=len(data.names)).tolist()
        return [len(data) / (len(counts) * count) if count else 1.0 for count in counts]
    positives = data.targets.sum(0).tolist()
    return [(len(data) - count) / count if count else 1.0 for count in positives]
