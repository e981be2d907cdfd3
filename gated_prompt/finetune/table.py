# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A CSV or JSONL file with a column of paths and a column of labels, or columns of numbers."""

import csv
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from ..errors import DataError
from ..predictor import Problem
from .image_set import CLASSES, LABELS, NUMBERS, ImageSet, Picture, class_targets, label_targets

SEPARATOR = ";"  # between the labels of one image in a CSV file


def read_table(
    file: Path, image_column: str, label_column: str, problem: str = "auto", names: tuple[str, ...] | None = None
) -> ImageSet:
    """The images that a file lists, by paths from its own folder.

    `problem` "auto": a JSON list means several labels, a number with a fraction numbers, anything else one class.
    Several labels in a CSV file are separated by ";" and need problem="labels".

    Raises:
        DataError: the file, a column or a label is missing or wrong; the message gives the line.
    """
    rows = _rows(file)
    for line, row in enumerate(rows, start=1):
        missing = [column for column in (image_column, label_column) if row.get(column) in (None, "")]
        if missing and not (missing == [label_column] and problem == LABELS):
            raise DataError(
                f"{file}, entry {line}, has no {missing[0]!r}; its columns are {', '.join(map(str, row))}. Name yours "
                "with --image_column and --label_column"
            )
    pictures = [Picture(str(row[image_column]), partial(Path, file.parent, str(row[image_column]))) for row in rows]
    return make_set(pictures, [row.get(label_column) for row in rows], problem, label_column, names, str(file))


def make_set(
    pictures: Sequence[Picture],
    values: Sequence[Any],
    problem: str,
    column: str,
    names: tuple[str, ...] | None,
    source: str,
) -> ImageSet:
    """Images with the values of a column as their labels.

    Raises:
        DataError: a value does not fit the problem, a class is not among `names`, or there is only one class.
    """
    if not values:
        raise DataError(f"{source} lists no images")
    kind = _kind(problem, values)
    if kind == NUMBERS:
        numbers = torch.tensor([_number(value, column, line) for line, value in enumerate(values, start=1)])
        return ImageSet(pictures, numbers[:, None], kind, (column,), source)
    each = [_labels(value) if kind == LABELS else [str(value)] for value in values]
    known = tuple(sorted({label for own in each for label in own}, key=_natural)) if names is None else names
    strangers = sorted({label for own in each for label in own} - set(known))
    if strangers:
        raise DataError(f"{source} has the class {strangers[0]!r}, which the training part lacks")
    if len(known) < 2:
        raise DataError(f"{source} has {len(known)} classes in column {column!r}; at least two are needed")
    targets = label_targets(each, known) if kind == LABELS else class_targets([own[0] for own in each], known)
    return ImageSet(pictures, targets, kind, known, source)


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    if file.suffix.lower() == ".csv":
        return list(csv.DictReader(text.splitlines()))
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {number}, is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f'{file}, line {number}, is no object like {{"image": ..., "label": ...}}')
        rows.append(row)
    return rows


def _kind(asked: str, values: Sequence[Any]) -> Problem:
    if asked == "auto":
        return LABELS if isinstance(values[0], list) else NUMBERS if _has_fractions(values) else CLASSES
    return next(problem for problem in get_args(Problem) if problem == asked)


def _labels(value: Any) -> list[str]:
    parts = value if isinstance(value, list) else str(value or "").split(SEPARATOR)
    return [str(part).strip() for part in parts if str(part).strip()]


def _has_fractions(values: Sequence[Any]) -> bool:
    try:
        return any(float(value) != int(float(value)) for value in values)
    except (TypeError, ValueError, OverflowError):
        return False


def _number(value: Any, column: str, line: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"entry {line} has {value!r} in column {column!r}; a finite number is needed")
    return number


def _natural(label: str) -> tuple[bool, int, str]:
    """Numbers in their order, before words."""
    return (False, int(label), "") if label.isdecimal() else (True, 0, label)
