# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Labelled images, whatever their labels are and wherever they came from."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError
from ..images import decode
from ..predictor import Problem

CLASSES: Final = "classes"
LABELS: Final = "labels"
NUMBERS: Final = "numbers"


@dataclass(frozen=True)
class Picture:
    """One image that is read on demand; `identity` changes when its content does."""

    name: str
    read: Callable[[], Path | bytes]

    def decode(self) -> Image.Image:
        return decode(self.read(), self.name)

    def identity(self) -> bytes:
        content = self.read()
        return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).digest()


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels.

    Attributes:
        pictures: the images, read on demand.
        targets: classes int64 (N,); zeros and ones float32 (N, K); or numbers float32 (N, K).
        problem: "classes", "labels" (several for an image) or "numbers".
        names: of the K classes, labels or numbers.
        source: where they came from, for reports.
        skipped: what was left out -> why.
    """

    pictures: Sequence[Picture]
    targets: Tensor
    problem: Problem
    names: tuple[str, ...]
    source: str
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, indices: Sequence[int]) -> "ImageSet":
        """Some of the images, in this order."""
        return replace(self, pictures=[self.pictures[i] for i in indices], targets=self.targets[list(indices)])

    def without_broken(self, show: bool) -> tuple["ImageSet", str]:
        """The images that can be decoded, and a fingerprint of their names, contents and labels.

        Raises:
            DataError: none can.
        """
        with ThreadPoolExecutor() as threads:
            bar = tqdm(threads.map(_inspect, self.pictures), "check images", len(self), leave=False, disable=not show)
            found = list(bar)
        broken = {p.name: e for p, (_, e) in zip(self.pictures, found, strict=True) if e is not None}
        whole = [index for index, (_, error) in enumerate(found) if error is None]
        if not whole:
            raise DataError(
                f"none of the {len(self)} images of {self.source} can be read. {next(iter(broken.values()))}"
            )
        sha = hashlib.sha256(repr((self.problem, self.names)).encode())
        for index in whole:
            sha.update(found[index][0])
        sha.update(self.targets[whole].numpy().tobytes())
        return replace(self.take(whole), skipped={**self.skipped, **broken}), sha.hexdigest()


def _inspect(picture: Picture) -> tuple[bytes, str | None]:
    try:
        picture.decode()
        return picture.identity(), None
    except DataError as error:
        return b"", str(error)


def class_targets(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """Index of each label among the names, int64 (N,)."""
    places = {name: index for index, name in enumerate(names)}
    return torch.tensor([places[label] for label in labels], dtype=torch.int64)


def label_targets(labels: Sequence[Sequence[str]], names: Sequence[str]) -> Tensor:
    """Zeros and ones, float32 (N, K)."""
    places = {name: index for index, name in enumerate(names)}
    targets = torch.zeros(len(labels), len(names))
    for row, own in enumerate(labels):
        targets[row, [places[label] for label in own]] = 1
    return targets
