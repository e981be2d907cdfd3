# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a label map stores: one byte a pixel, a palette, 16 bits, or colours."""

from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DataError
from ...images import decode
from .class_table import pack

LOSSY = ("JPEG", "MPO")


def read_mask(source: Path | bytes, name: str, by_colour: bool) -> np.ndarray:
    """The values (H, W) int64 of a label map. With `by_colour` its colours, packed.

    A palette image stores the numbers of its colours, which count unless colours are asked for.

    Raises:
        DataError: it cannot be decoded, is a JPEG without a list of classes, or holds colours that nobody asked for.
    """
    return values_of(decode(source, name, as_stored=True), name, by_colour)


def values_of(mask: Image.Image, name: str, by_colour: bool) -> np.ndarray:
    """The same of a label map that is decoded."""
    if by_colour:
        return pack(np.asarray(mask.convert("RGB")))
    if mask.mode in ("RGB", "RGBA"):
        channels = np.asarray(mask)[..., :3]
        if (channels != channels[..., :1]).any():
            raise DataError(
                f"the mask {name} stores colours; say which colour is which class with --palette classes.csv, lines "
                "of 'name,red,green,blue'"
            )
        return channels[..., 0].astype(np.int64)
    if mask.mode == "LA":
        mask = mask.getchannel(0)
    values = np.asarray(mask)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise DataError(f"the mask {name} has {mask.mode} pixels; whole numbers, one for each pixel, are needed")
    return values.astype(np.int64)


def is_lossy(source: Path | bytes, name: str) -> bool:
    """Whether a file's format changes values when it is saved."""
    if isinstance(source, Path) and source.suffix.lower() == ".png":
        return False
    return decode_format(source, name) in LOSSY


def decode_format(source: Path | bytes, name: str) -> str | None:
    """Pillow's name of a file's format.

    Raises:
        DataError: it cannot be opened.
    """
    import io

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.format
    except (OSError, ValueError) as error:
        raise DataError(f"the mask {name} cannot be decoded: {error}") from error
