# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Labelled images with a record of where they came from: what every classification loader returns."""

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ..errors import DataError

DEEPEST = 65535  # white of 16 bits


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


def decode(
    source: str | Path | bytes,
    name: str | None = None,
    *,
    as_stored: bool = False,
    upright: bool = True,
    formats: tuple[str, ...] | None = None,
    most_pixels: int | None = None,
) -> Image.Image:
    """Reads a picture as training reads it: see `to_rgb`.

    Args:
        source: A file, or its content.
        name: What to call it in a message; None: the path.
        formats: Pillow's names of the formats that are tried; None: all. Name a few for pictures of strangers.
        most_pixels: A picture with more is refused before any pixel is decoded; None: Pillow's own limit.
        as_stored: For label maps: nothing is converted or turned.
        upright: See `to_rgb`.

    Raises:
        DataError: It is missing, damaged, too large, or has pixels without a known range; the message names it.
    """
    name = name or ("in memory" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise DataError(
                    f"has {image.width} x {image.height} pixels, more than {most_pixels}. Make it smaller."
                )
            return image.copy() if as_stored else to_rgb(image, upright=upright)
    except DataError as error:
        raise DataError(f"The image {name} {error}") from error
    except FileNotFoundError:
        raise DataError(f"The image {name} is missing.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"The image {name} cannot be decoded: {error}. Fetch it again.") from error


def to_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """A picture in RGB, 8 bits a channel.

    Turned as the camera was held (EXIF), as `datasets` turns it. Grey of 16 bits is scaled by 1 / 257, where Pillow
    itself would cut it off at 255. Transparency is dropped: a pixel has its stored colour. Of an animation, the frame
    that the picture stands at, the first after opening.

    Args:
        image: In any mode of Pillow.
        upright: False leaves the pixels where they are stored, for a picture that a label map belongs to.

    Raises:
        DataError: The pixels are floats, or whole numbers beyond 16 bits: nothing says which value is white.
    """
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > DEEPEST:
            raise DataError(
                f"has pixels of type {grey.dtype} from {grey.min()} to {grey.max()}, and nothing says which value is "
                "white. Save it with 8 or 16 bits."
            )
        image = Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB Pillow warns
    return image.convert("RGB")


class ImageFiles:
    """Images in files; `upright` as in `to_rgb`."""

    def __init__(self, paths: Sequence[Path], *, upright: bool = True) -> None:
        self.paths = paths
        self.upright = upright

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.paths[index], self.name(index), upright=self.upright)

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
