# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Images with a column of labels, or several columns of zeros and ones: from a file, or from rows of any source."""

import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from .image_set import LABEL_NOUNS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, ImageSet, Picture
from .labels import (
    Column,
    Reading,
    class_names,
    class_targets,
    clean,
    label_targets,
    labelled,
    number_targets,
    refuse_strangers,
    zeros_and_ones,
)
from .problems import Kind, recognize
from .table_file import read_rows

AS_IT_IS = Reading()
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".JPG", ".JPEG", ".PNG")  # which ids may lack
MOSTLY = 0.95  # if this share of rows has exactly one 1, the others look like mistakes


def read_table(file: Path, image_column: str, label_columns: Sequence[str], reading: Reading = AS_IT_IS) -> ImageSet:
    """The images that a CSV, TSV or JSONL file lists, by paths from its own folder.

    Raises:
        DataError: the file, a column or a label is missing or wrong. The message gives the line.
    """
    rows = read_rows(file)
    if not rows:
        raise DataError(f"{file} lists no images")
    image_column, label_columns = clean(image_column), clean(list(label_columns))
    for row in rows:
        missing = [name for name in (image_column, *label_columns) if name not in row.values]
        if missing:
            raise DataError(
                f"{file}, line {row.line}, has no {missing[0]!r}. Its columns are {', '.join(map(str, row.values))}. "
                "Name yours with --image_column and --label_column."
            )
        if not isinstance(row.values[image_column], str) or not row.values[image_column]:
            raise DataError(f"{file}, line {row.line}, column {image_column!r}, is empty. Name an image there.")
    files = [row.values[image_column] for row in rows]
    pictures = [Picture(name, partial(_find, file.parent, name)) for name in files]
    columns = [
        Column(name, [row.values[name] for row in rows], lambda i: f"line {rows[i].line}", str(file))
        for name in label_columns
    ]
    return make_set(pictures, columns, reading)


def make_set(pictures: Sequence[Picture], columns: Sequence[Column], reading: Reading) -> ImageSet:
    """Images with the values of a column as their labels, or of several columns of zeros and ones.

    Raises:
        DataError: a value is missing or does not fit the problem, a class is unknown, or there is only one.
    """
    if not pictures:
        raise DataError(f"{columns[0].source} lists no images")
    if len(columns) > 1:
        return _of_columns(pictures, columns, reading)
    (column,) = columns
    kept = labelled(column, reading.missing, reading.problem, reading.names)
    skipped = {pictures[i].name: f"has no label: {column.at(i)}" for i in set(range(len(pictures))) - set(kept)}
    pictures, column = [pictures[i] for i in kept], column.take(kept)
    kind = recognize(column, reading.problem, reading.separator)
    names: tuple[str, ...] = (column.name,)
    if kind.problem == REGRESSION:
        targets = number_targets(column)[:, None]
    else:
        each = [_labels(value, kind) for value in column.values]
        names = reading.names or class_names(column, each)
        refuse_strangers(column, each, names)
        targets = (
            label_targets(each, names) if kind.problem == MULTI_LABEL else class_targets([e[0] for e in each], names)
        )
    return ImageSet(
        pictures, targets, kind.problem, names, column.source, skipped, _said(column, kind), kind.separator
    )


def _said(column: Column, kind: Kind) -> str:
    return f"column {column.name!r} of {column.source} holds {LABEL_NOUNS[kind.problem]}: {kind.why}"


def _labels(value: str | list[str], kind: Kind) -> list[str]:
    parts = value if isinstance(value, list) else value.split(kind.separator) if kind.separator else [value]
    return list(dict.fromkeys(part for part in map(clean, parts) if part))


def _of_columns(pictures: Sequence[Picture], columns: Sequence[Column], reading: Reading) -> ImageSet:
    """One column for each class, label or number."""
    kept = set(range(len(pictures)))
    for column in columns:
        kept &= set(labelled(column, reading.missing, REGRESSION))
    order = sorted(kept)
    gone = {pictures[i].name: "has no label" for i in set(range(len(pictures))) - kept}
    columns = [column.take(order) for column in columns]
    names, source = tuple(column.name for column in columns), columns[0].source
    if reading.problem == REGRESSION:
        kind = Kind(REGRESSION, "as --problem says")
        targets = torch.stack([number_targets(column) for column in columns], 1)
    else:
        targets = torch.stack([_binary(column) for column in columns], 1)
        kind = _one_or_several(targets, columns[0], reading.problem)
    if kind.problem == SINGLE_LABEL:
        targets = targets.argmax(1)
    said = f"the {len(columns)} columns of {source} hold {LABEL_NOUNS[kind.problem]}: {kind.why}"
    return ImageSet([pictures[i] for i in order], targets, kind.problem, names, source, gone, said)


def _binary(column: Column) -> Tensor:
    found = zeros_and_ones(column)
    if found is None:
        odd = next(i for i in range(len(column.values)) if zeros_and_ones(column.take([i])) is None)
        raise DataError(
            f"{column.full(odd)}. With several --label_column each cell must be 0 or 1. Give --problem {REGRESSION} "
            "to predict values."
        )
    return found


def _one_or_several(targets: Tensor, column: Column, asked: str) -> Kind:
    """Whether rows of zeros and ones are classes or labels."""
    single = targets.sum(1) == 1
    share = float(single.float().mean())
    if asked == MULTI_LABEL:
        return Kind(MULTI_LABEL, "as --problem says")
    if bool(single.all()):
        return Kind(SINGLE_LABEL, "every row has exactly one 1")
    row = int((~single).nonzero()[0, 0])
    where = f"{column.source}, {column.place(row)}, has {int(targets[row].sum())} columns with 1"
    if asked == SINGLE_LABEL:
        raise DataError(f"{where}. Expected exactly one, since an image has one class.")
    if share >= MOSTLY:
        raise DataError(f"{where}, but nearly all others have one. Correct it, or give --problem {MULTI_LABEL}.")
    return Kind(MULTI_LABEL, where)


def _find(folder: Path, name: str) -> Path:
    """The file of a name, in whichever form of Unicode the file system has it, or of an id that lacks its ending.

    An id with two files is as good as missing: nothing says which one was labelled.
    """
    forms = [folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    for path in forms:
        if path.is_file():
            return path
    ended = {path.with_name(f"{path.name}{ending}") for path in forms for ending in ENDINGS}
    found = [path for path in ended if path.is_file()]
    return found[0] if len(found) == 1 else folder / name
