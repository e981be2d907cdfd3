# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A data set of the Hub, or a folder in its layout, read with `datasets`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from .image_set import CLASSES, LABELS, ImageSet, Picture
from .labels import Column, clean
from .table import Reading, make_set


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


def read_split(rows: Any, image_column: str, label_columns: Sequence[str], reading: Reading, source: str) -> ImageSet:
    """One split; names of classes are those of the column's feature where it has them.

    Raises:
        DataError: a column is missing or holds no images, or a label is wrong.
    """
    from datasets import Image

    asked = [("--image_column", image_column), *(("--label_column", name) for name in label_columns)]
    for option, column in asked:
        if column not in rows.column_names:
            raise DataError(f"{source} has no column {column!r}; it has {', '.join(rows.column_names)}. Give {option}")
    if not isinstance(rows.features[image_column], Image):
        raise DataError(f"the column {image_column!r} of {source} holds no images; give another --image_column")
    stored = rows.cast_column(image_column, Image(decode=False))
    pictures = [Picture(f"{source} {i}", partial(_read, stored, i, image_column)) for i in range(len(rows))]
    if len(label_columns) == 1 and not reading.names:
        reading = _named(rows.features[label_columns[0]], reading)
    columns = [
        Column(name, _texts(rows.features[name], rows[name][:]), lambda i: f"row {i}", source)
        for name in label_columns
    ]
    return make_set(pictures, columns, reading)


def _named(feature: Any, reading: Reading) -> Reading:
    """The reading of a column whose feature names the classes, in its order."""
    from datasets import ClassLabel

    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, ClassLabel):
        return reading
    return replace(
        reading, problem=CLASSES if inner is feature else LABELS, names=tuple(dict.fromkeys(clean(inner.names)))
    )


def _texts(feature: Any, values: Sequence[Any]) -> list[Any]:
    """Values of a column as text, names in place of the numbers of classes."""
    from datasets import ClassLabel

    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, ClassLabel):
        return [clean(value) for value in values]
    names = dict(enumerate(clean(inner.names)))  # a number without a name, such as -1, stays one

    def named(value: Any) -> Any:
        return [named(one) for one in value] if isinstance(value, list) else names.get(value, clean(value))

    return [named(value) for value in values]


def _read(rows: Any, index: int, column: str) -> Path | bytes:
    stored = rows[index][column]
    if stored is None:
        raise DataError(f"row {index} has no image")
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])
