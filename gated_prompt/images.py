# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Labelled images and their provenance, as every classification loader returns them."""

import io
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import ExifTags, Image
from torch.utils.data import Dataset

from .errors import DataError

try:
    from pillow_heif import register_heif_opener
except ImportError:
    register_heif_opener = None

WHITE_16_BIT = 65535
MOST_ELONGATED = 200  # resizing the short side of a wider strip would need gigabytes
HEIF = {".heic", ".heif", ".hif"}
UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

if register_heif_opener is not None:
    register_heif_opener()
Image.init()
# A photo that cannot be read without pillow-heif is a photo all the same, so that somebody is told.
EXTENSIONS = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN} | HEIF


class InexactDataWarning(UserWarning):
    """The data are usable but not exactly the benchmark's, so results do not compare with published ones."""


@dataclass(frozen=True)
class Provenance:
    """Where a data set came from, for results files.

    Attributes:
        dataset: Name of the data set or task.
        split: Split name in the benchmark's terms.
        source: Hub repository or folder.
        revision: Commit of the Hub repository that was read. None for local files.
        exact: Whether these are exactly the benchmark's examples, pixel by pixel.
        note: The reason, in one sentence.
        count: Number of examples.
        expected_count: Number of examples in the benchmark. None if unknown.
        lossy: Whether an inexact data set has the benchmark's examples after all, encoded again with loss.
    """

    dataset: str
    split: str
    source: str
    revision: str | None
    exact: bool
    note: str
    count: int
    expected_count: int | None
    lossy: bool = False

    @property
    def state(self) -> Literal["exact", "lossy", "inexact"]:
        """The benchmark's pixels, its examples encoded again with loss, or other examples."""
        return "exact" if self.exact else "lossy" if self.lossy else "inexact"

    def to_dict(self) -> dict[str, str | bool | int | None]:
        """Return the fields and the state, ready for JSON."""
        return {**asdict(self), "state": self.state}

    def warn_if_inexact(self) -> None:
        """Warn if the examples are not exactly the benchmark's. Skipped if its size is unknown."""
        if not self.exact and self.expected_count is not None:
            what = (
                "the benchmark's examples, encoded with loss" if self.lossy else "not exactly the benchmark's examples"
            )
            message = f"{self.dataset} {self.split}: {what}. {self.note}"
            warnings.warn(message, InexactDataWarning, stacklevel=4)


class Images(Protocol):
    """Images by index, decoded on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str:
        """Return the name of an image for error messages."""
        ...


def decode(
    source: str | Path | bytes,
    name: str | None = None,
    *,
    as_stored: bool = False,
    upright: bool = True,
    formats: tuple[str, ...] | None = None,
    most_pixels: int | None = None,
    least_side: int | None = None,
) -> Image.Image:
    """Decode an image the way training does. See `to_rgb`.

    HEIC and HEIF need pillow-heif.

    Args:
        source: Path or content of a file.
        name: Name for error messages. None means the path.
        formats: Pillow's names of the accepted formats. None means all. Restrict them for untrusted images.
        most_pixels: Reject larger images before decoding a pixel. None means Pillow's own limit.
        least_side: Decode a JPEG at 1/2, 1/4 or 1/8 of its size where both sides keep this many pixels. None means
            never.
        as_stored: Neither convert nor rotate, for label maps.
        upright: See `to_rgb`.

    Raises:
        DataError: The image is missing, damaged, too large or a narrow strip, or its pixel range is unknown. The
            message names it.
    """
    name = name or ("in memory" if isinstance(source, bytes) else shown_path(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise DataError(f"has {image.width} x {image.height} pixels, more than {most_pixels}. Resize it.")
            if as_stored:
                return image.copy()
            if max(image.size) > MOST_ELONGATED * min(image.size):
                raise DataError(
                    f"has {image.width} x {image.height} pixels. One side is more than {MOST_ELONGATED} times the "
                    "other. Crop it."
                )
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            return to_rgb(image, upright=upright)
    except DataError as error:
        raise DataError(f"The image {name} {error}") from error
    except FileNotFoundError:
        raise DataError(f"The image {name} is missing.") from None
    except Exception as error:  # decoders raise two dozen kinds: struct.error, TypeError, ZeroDivisionError, ...
        raise DataError(f"The image {name} cannot be decoded: {_reason(error, name)}") from error


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as text that can be printed and stored: bytes that are not UTF-8 appear as \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _reason(error: Exception, name: str) -> str:
    if Path(name).suffix.lower() in HEIF and register_heif_opener is None:
        return "HEIC needs pillow-heif: pip install pillow-heif, or convert it to JPEG."
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{text}. Fetch it again."


def to_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """Convert an image to RGB with 8 bits per channel.

    Applies the EXIF orientation, as `datasets` does. Scales 16-bit grey by 1 / 257, where Pillow itself would clip it
    at 255. Drops transparency: each pixel keeps its stored colour. Converts the current frame of an animation, which
    is the first one after opening.

    Args:
        image: In any Pillow mode.
        upright: False ignores the EXIF orientation, for images with a label map.

    Raises:
        DataError: The pixels are floats, or integers beyond 16 bits, so the value of white is unknown.
    """
    if upright:
        image.load()  # a PNG may have its EXIF after the pixels
        # Not `ImageOps.exif_transpose`, which writes the other tags anew and fails where one has an odd type.
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        image = image if turn is None else image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > WHITE_16_BIT:
            raise DataError(
                f"has {grey.dtype} pixels from {grey.min()} to {grey.max()}, so the value of white is unknown. Save "
                "it with 8 or 16 bits."
            )
        image = Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if converted directly to RGB
    return image.convert("RGB")


class ImageFiles:
    """Images in files. `to_rgb` explains `upright`."""

    def __init__(self, paths: Sequence[Path], *, upright: bool = True) -> None:
        self.paths = paths
        self.upright = upright

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.paths[index], self.name(index), upright=self.upright)

    def name(self, index: int) -> str:
        return shown_path(self.paths[index])


class LabelledImages(Dataset[tuple[Image.Image, int]]):
    """A data set of (RGB image, class) pairs.

    Attributes:
        images: The images.
        labels: Class of each image, 0 to `num_classes - 1`.
        num_classes: Number of classes of the task. A small split may not contain all of them.
        class_names: Class names in order. None if the source does not list them.
        provenance: Where the data came from.

    Raises:
        DataError: A label is out of range, or the number of labels or class names is wrong.
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
            raise DataError(f"{provenance.source} has {len(self.class_names)} class names, expected {num_classes}.")
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
