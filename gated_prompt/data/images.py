# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Labelled images with a record of where they came from: what every classification loader returns."""

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch.utils.data import Dataset

from ..errors import DataError


class InexactDataWarning(UserWarning):
    """The data are usable, but not exactly the benchmark's; results do not compare with published ones."""


@dataclass(frozen=True)
class Provenance:
    """Where a data set came from; `to_dict` goes into a results file.

    Attributes:
        dataset: Name of the data set or task.
        split: Split, in the benchmark's terms.
        source: Hub repository or folder.
        revision: Commit of the Hub repository that was read; None for local files.
        exact: True: these are exactly the benchmark's examples. False: they are only like them.
        note: Why, in a sentence.
        count: Number of examples.
        expected_count: Number of examples in the benchmark, where it is known.
    """

    dataset: str
    split: str
    source: str
    revision: str | None
    exact: bool
    note: str
    count: int
    expected_count: int | None

    def to_dict(self) -> dict[str, str | bool | int | None]:
        """The fields, ready for JSON."""
        return asdict(self)

    def warn_if_inexact(self) -> None:
        """Warns with the reason; a benchmark of unknown size has nothing to be compared with."""
        if not self.exact and self.expected_count is not None:
            message = f"{self.dataset} {self.split}: not exactly the benchmark's examples. {self.note}"
            warnings.warn(message, InexactDataWarning, stacklevel=4)


class Images(Protocol):
    """Images by position, decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...


def decode(source: Path | bytes, name: str, *, as_stored: bool = False) -> Image.Image:
    """Decodes an image to RGB, or, for label maps, to what is stored.

    Raises:
        DataError: It is missing or damaged; the message names it.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.copy() if as_stored else image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"The image {name} is missing.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"The image {name} cannot be decoded: {error}. Fetch it again.") from error


class ImageFiles:
    """Images in files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.paths[index], self.name(index))

    def name(self, index: int) -> str:
        return str(self.paths[index])


class LabelledImages(Dataset[tuple[Image.Image, int]]):
    """A data set of (RGB image, class) pairs.

    Attributes:
        images: The images.
        labels: Class of each image, 0 to `num_classes - 1`.
        num_classes: Number of classes of the task, which may be more than a small split shows.
        class_names: Names of the classes in order, where the source knows them.
        provenance: Where the data came from.

    Raises:
        DataError: A label is out of range, or names or labels are not as many as they should be.
    """

    def __init__(
        self,
        images: Images,
        labels: Iterable[int],
        *,
        num_classes: int,
        provenance: Provenance,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.images = images
        self.labels = list(labels)
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.provenance = provenance
        if len(self.labels) != len(images):
            raise DataError(f"{provenance.source} has {len(images)} images but {len(self.labels)} labels.")
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise DataError(f"{provenance.source} has {len(self.class_names)} classes, expected {num_classes}.")
        for index, label in enumerate(self.labels):
            if not 0 <= label < num_classes:
                raise DataError(
                    f"The image {images.name(index)} has label {label}, expected 0 to {num_classes - 1} for"
                    f" {provenance.dataset}."
                )
        provenance.warn_if_inexact()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], self.labels[index]
