# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Labelled images, whatever their labels are and wherever they came from, and their pixels for a backbone."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import DataError
from ..images import decode
from ..predictor import Predictor, Problem
from ..transforms import ResizeCenterCrop

SINGLE_LABEL: Final = "single_label"
MULTI_LABEL: Final = "multi_label"
REGRESSION: Final = "regression"
LABEL_NOUNS: Mapping[Problem, str] = {SINGLE_LABEL: "classes", MULTI_LABEL: "labels", REGRESSION: "numbers"}


@dataclass(frozen=True)
class Picture:
    """One image, read on demand. `name` can be printed and stored, whatever the file is called."""

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
        targets: classes int64 (N,), zeros and ones float32 (N, K), or numbers float32 (N, K).
        problem: "single_label", "multi_label" (any number for an image) or "regression".
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
        if self.problem == SINGLE_LABEL:
            return self.names[int(target)]
        if self.problem == MULTI_LABEL:
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


class Pixels(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (pixels (3, side, side), label), as `predictor` prepares images.

    With `seed`, crops and flips are drawn from seed, epoch and position alone, so that they are the same after
    resuming and with any number of processes that decode.
    """

    def __init__(self, data: ImageSet, predictor: Predictor, seed: int | None = None) -> None:
        self.data, self.seed, self.epoch = data, seed, 0
        drawn = seed is not None
        self.transform = ResizeCenterCrop(**predictor.preparation, train=True) if drawn else predictor.transform()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.data.pictures[index].decode(), self.data.targets[index]
        if self.seed is None:
            return self.transform(image), target
        drawn = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(drawn))  # torch.manual_seed would also seed the GPU's dropout
            return self.transform(image), target
