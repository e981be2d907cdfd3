# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A data set of the Hub, or a folder in its layout, read with `datasets`."""

from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from .image_set import CLASSES, LABELS, ImageSet, Picture
from .table import make_set


def hub_parts(dataset: str, revision: str | None) -> Any:
    """The data set with all its splits.

    Raises:
        DataError: it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(dataset, revision=revision)
    except Exception as error:  # datasets raises a dozen kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot load --dataset {dataset!r}: {reason}; "
            "give a Hub id that can be reached, or a folder of parquet files"
        ) from error


def read_split(
    rows: Any, image_column: str, label_column: str, problem: str, names: tuple[str, ...] | None, source: str
) -> ImageSet:
    """One split; names of classes are those of the column's feature where it has them.

    Raises:
        DataError: a column is missing or holds no images, or a label is wrong.
    """
    from datasets import ClassLabel, Image

    for option, column in (("--image_column", image_column), ("--label_column", label_column)):
        if column not in rows.column_names:
            raise DataError(f"{source} has no column {column!r}; it has {', '.join(rows.column_names)}. Give {option}")
    if not isinstance(rows.features[image_column], Image):
        raise DataError(f"the column {image_column!r} of {source} holds no images; give another --image_column")
    stored = rows.cast_column(image_column, Image(decode=False))
    pictures = [Picture(f"{source} {i}", partial(_read, stored, i, image_column)) for i in range(len(rows))]
    feature, values = rows.features[label_column], rows[label_column][:]
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, ClassLabel):
        several = inner is not feature
        known = tuple(inner.names)
        values = [[known[v] for v in value] if several else known[value] for value in values]
        return make_set(pictures, values, LABELS if several else CLASSES, label_column, names or known, source)
    return make_set(pictures, values, problem, label_column, names, source)


def _read(rows: Any, index: int, column: str) -> Path | bytes:
    stored = rows[index][column]
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])
