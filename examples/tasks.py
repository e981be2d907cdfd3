# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The image classification tasks that the example scripts know, in the style of VTAB-1k.

A task has 800 images to train on, 200 to choose settings with, and a test part that is scored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gated_prompt import GatedPromptError

KNOWN = ("digits",)


class TaskError(GatedPromptError):
    """The task is unknown or its data are not what they should be."""


@dataclass(frozen=True)
class Split:
    """Images and their labels, in one order."""

    images: Sequence[Image.Image]
    labels: list[int]

    def __add__(self, other: "Split") -> "Split":
        return Split([*self.images, *other.images], self.labels + other.labels)

    def __getitem__(self, part: slice) -> "Split":
        return Split(self.images[part], self.labels[part])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """One task; `provenance` says where the images came from, for the result file."""

    name: str
    class_names: list[str]
    train: Split
    val: Split
    test: Split
    provenance: str


def load_task(name: str) -> Task:
    """Load a task by name.

    Raises:
        TaskError: the name is unknown; the known ones are listed.
    """
    if name not in KNOWN:
        raise TaskError(f"unknown task {name!r}; known tasks: {', '.join(KNOWN)}")
    return _digits()


def _digits() -> Task:
    """The 1797 scanned digits that come with scikit-learn, 8 x 8 pixels, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    pixels = (data.images[order] * (255 / 16)).astype(np.uint8)
    split = Split([Image.fromarray(p).convert("RGB") for p in pixels], data.target[order].tolist())
    return Task(
        name="digits",
        class_names=[str(name) for name in data.target_names],
        train=split[:800],
        val=split[800:1000],
        test=split[1000:],
        provenance="scikit-learn load_digits (UCI optical recognition of handwritten digits), 1797 scans, shuffled",
    )
