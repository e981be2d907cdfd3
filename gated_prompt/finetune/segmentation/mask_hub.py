# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A data set of the Hub, or a folder in its layout, with a column of images and one of label maps."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..image_set import Picture
from .class_table import ClassTable
from .mask_files import is_lossy, read_mask
from .mask_set import LabelMap, Unchecked


def read_mask_split(
    rows: Any, image_column: str, label_column: str, table: ClassTable | None, source: str
) -> Unchecked:
    """One split.

    Raises:
        DataError: a column is missing or holds no images.
    """
    from datasets import Image

    for option, column in (("--image_column", image_column), ("--label_column", label_column)):
        if column not in rows.column_names:
            raise DataError(f"{source} has no column {column!r}; it has {', '.join(rows.column_names)}. Give {option}")
        if not isinstance(rows.features[column], Image):
            raise DataError(f"the column {column!r} of {source} holds no images; give another {option}")
    stored = rows.cast_column(image_column, Image(decode=False)).cast_column(label_column, Image(decode=False))
    by_colour = table is not None and table.colours is not None
    names = [f"{source} {index}" for index in range(len(rows))]
    return Unchecked(
        [Picture(name, partial(_read, stored, index, image_column)) for index, name in enumerate(names)],
        [
            LabelMap(
                name,
                partial(_mask, stored, index, label_column, name, by_colour),
                partial(_is_lossy, stored, index, label_column, name),
            )
            for index, name in enumerate(names)
        ],
        table,
        source,
    )


def _read(rows: Any, index: int, column: str) -> Path | bytes:
    stored = rows[index][column]
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])


def _mask(rows: Any, index: int, column: str, name: str, by_colour: bool) -> np.ndarray:
    return read_mask(_read(rows, index, column), name, by_colour)


def _is_lossy(rows: Any, index: int, column: str, name: str) -> bool:
    return is_lossy(_read(rows, index, column), name)
