# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read a folder of images and one of masks, paired by name."""

import os
from functools import partial
from pathlib import Path

from ...data.ade20k import read_names as ade_names
from ...errors import DataError
from ...images import EXTENSIONS
from ..image_set import Picture
from .class_table import ClassTable, from_names, from_palette, read_names
from .mask_files import is_lossy, read_mask
from .mask_set import LabelMap, Unchecked

CLASSES = "classes.txt"


def read_mask_folder(images: Path, masks: Path, table: ClassTable | None) -> Unchecked:
    """The pairs of two folders. A mask has the path of its image below the folder, whatever its ending.

    Raises:
        DataError: one of the folders is missing, or nothing in it has a partner.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; images and masks lie in two folders side by side")
    pictures, maps = _files(images), _files(masks)
    names = sorted(pictures.keys() & maps.keys())
    skipped = {str(pictures[name]): f"has no mask in {masks}" for name in sorted(pictures.keys() - maps.keys())}
    skipped |= {str(maps[name]): f"has no image in {images}" for name in sorted(maps.keys() - pictures.keys())}
    if not names:
        raise DataError(
            f"no image of {images} has a mask of its name in {masks} ({len(pictures)} images, {len(maps)} masks); "
            "images/001.jpg goes with masks/001.png"
        )
    by_colour = table is not None and table.colours is not None
    return Unchecked(
        [Picture(name, partial(Path, pictures[name])) for name in names],
        [
            LabelMap(
                name, partial(read_mask, maps[name], str(maps[name]), by_colour), partial(is_lossy, maps[name], name)
            )
            for name in names
        ],
        table,
        str(images),
        skipped,
    )


def table_for(folder: Path | None, classes: str | None, palette: str | None) -> ClassTable | None:
    """The classes as --palette, --classes or a file in the folder or above it names them. None: nothing does."""
    if palette is not None:
        return from_palette(Path(palette))
    if classes is not None:
        return from_names(read_names(Path(classes)))
    for place in (folder, folder.parent) if folder is not None else ():
        if (place / CLASSES).is_file():
            return from_names(read_names(place / CLASSES))
    names = ade_names(folder) if folder is not None else None
    return from_names(names, first=1) if names is not None else None


def _files(folder: Path) -> dict[str, Path]:
    """Image files at any depth by their path without the ending.

    Raises:
        DataError: two differ in their ending only.
    """
    found: dict[str, Path] = {}
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            file = Path(place, name)
            if name.startswith(".") or file.suffix.lower() not in EXTENSIONS:
                continue
            key = str(file.relative_to(folder).with_suffix(""))
            if key in found:
                raise DataError(f"{found[key]} and {file} have the same name; which of them is meant cannot be told")
            found[key] = file
    return found
