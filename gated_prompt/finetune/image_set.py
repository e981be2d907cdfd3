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
    """One image that is read on demand; `name` can be printed and stored, whatever the file is called."""

    name: str
    read: Callable[[], Path | bytes]

    def decode(self) -> Image.Image:
        return decode(self.read(), self.name)

    def identity(self) -> bytes:
        """A hash of its content.

        Raises:
            DataError: it cannot be read.
        """
        content = self.read()
        try:
            return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).digest()
        except OSError as error:
            raise DataError(f"The image {self.name} cannot be read: {error.strerror}.") from error


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
        read_as: what the labels were taken for and why, for the user.
        separator: of several labels in a cell, for reading other parts alike.
        contents: a hash of each image, once they were checked.
    """

    pictures: Sequence[Picture]
    targets: Tensor
    problem: Problem
    names: tuple[str, ...]
    source: str
    skipped: Mapping[str, str] = field(default_factory=dict)
    read_as: str = ""
    separator: str | None = None
    contents: Sequence[bytes] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, indices: Sequence[int]) -> "ImageSet":
        """Some of the images, in this order."""
        return replace(
            self,
            pictures=[self.pictures[i] for i in indices],
            targets=self.targets[list(indices)],
            contents=[self.contents[i] for i in indices] if self.contents else (),
        )

    def joined(self, other: "ImageSet") -> "ImageSet":
        """These images, then those of another part."""
        return replace(
            self,
            pictures=[*self.pictures, *other.pictures],
            targets=torch.cat((self.targets, other.targets)),
            contents=[*self.contents, *other.contents] if self.contents and other.contents else (),
        )

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
        checked = replace(self, contents=[content for content, _ in found], skipped={**self.skipped, **broken})
        return checked.take(whole), sha.hexdigest()

    def label(self, index: int) -> str:
        """The label of an image, for messages."""
        target = self.targets[index]
        if self.problem == CLASSES:
            return self.names[int(target)]
        if self.problem == LABELS:
            return "; ".join(self.names[i] for i in target.nonzero()[:, 0].tolist()) or "no label"
        return ", ".join(f"{number:g}" for number in target.tolist())


def contradictions(parts: Mapping[str, ImageSet]) -> list[str]:
    """Images with the same content and different labels, within one part and between parts."""
    first: dict[bytes, tuple[str, int]] = {}
    found = []
    for part, data in parts.items():
        for index, content in enumerate(data.contents):
            other, place = first.setdefault(content, (part, index))
            if not torch.equal(parts[other].targets[place], data.targets[index]):
                both = ((parts[other], place), (data, index))
                found.append(" = ".join(f"{own.pictures[i].name} ({own.label(i)})" for own, i in both))
    return found


def _inspect(picture: Picture) -> tuple[bytes, str | None]:
    try:
        picture.decode()
        return picture.identity(), None
    except DataError as error:
        return b"", str(error)
