# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From labels in folders, tables and data sets to one spelling, one order and targets."""

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..files.header import shown
from .image_set import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ImageSet

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NO_LABEL = {"nan", "na", "n/a", "#n/a", "<na>", "none", "null"}  # what programs write for a missing value
UNKNOWN = "-1"  # the label of images whose class a data set hides
LONGEST = 1000  # characters of a name
EDGES = re.compile(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$")  # spaces, those without a width included
ZERO, ONE = {"0", "0.0", "false"}, {"1", "1.0", "true"}  # in a column of zeros and ones


@dataclass(frozen=True)
class Reading:
    """How to read labels: what the user asked for, and for later parts what the training part held.

    Attributes:
        problem: a problem, or "auto".
        separator: what separates several labels of an image in a cell. None means that it is inferred.
        missing: what to do with missing labels. See `labels.labelled`.
        names: of the classes where they are known. Empty: those that occur.
    """

    problem: str = "auto"
    separator: str | None = None
    missing: str = "refuse"
    names: tuple[str, ...] = ()


def reading_like(data: ImageSet, reading: Reading) -> Reading:
    """How other parts are read, once the training part is known."""
    return replace(reading, problem=data.problem, names=data.names, separator=data.separator or reading.separator)


@dataclass(frozen=True)
class Column:
    """The labels of one source, in the order of its images.

    Attributes:
        name: of the column.
        values: text, None if there is none, or a list of texts.
        place: of the i-th value, for messages, such as "line 3".
        source: where they come from, for messages.
    """

    name: str
    values: Sequence[Any]
    place: Callable[[int], str]
    source: str

    def at(self, index: int) -> str:
        """A value and its place in the source, for messages."""
        value = self.values[index]
        what = "is empty" if value in (None, "") else f"has {shown(value)}"
        return f"{self.place(index)}, column {self.name!r}, {what}"

    def full(self, index: int) -> str:
        """The same with the source before it."""
        return f"{self.source}, {self.at(index)}"

    def take(self, indices: Sequence[int]) -> "Column":
        return Column(
            self.name, [self.values[i] for i in indices], lambda index: self.place(indices[index]), self.source
        )


def clean(value: Any) -> Any:
    """Return a label in the form that is compared: NFC text without surrounding spaces, None, or a list of these."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [clean(one) for one in value]
    return EDGES.sub("", unicodedata.normalize("NFC", str(value)))


def in_order(name: str) -> tuple[bool, int, str, str]:
    """Return the sort key of a class name. Whole numbers come first, by size. The order is total for any names."""
    if not (name.isascii() and name.isdigit()):
        return True, 0, "", name
    digits = name.lstrip("0")  # compared as text: int() takes no more than 4300 digits
    return False, len(digits), digits, name


def looks(name: str) -> str:
    """A name without what a reader overlooks: case, forms of a character, spaces, invisible signs."""
    seen = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    return " ".join(seen.casefold().split())


def is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None


def labelled(column: Column, missing: str, problem: str, known: Sequence[str] = ()) -> list[int]:
    """Which values are labels.

    Args:
        column: the labels.
        missing: what to do where there is none: "refuse", "skip", or "keep" those that read like a missing label.
        problem: what is predicted, or "auto".
        known: the classes of the training part, if this is another one, or those that the source names.

    Raises:
        DataError: some are missing and `missing` is "refuse", or all are.
    """
    empty = {
        index for index, value in enumerate(column.values) if value is None or (value == "" and problem != MULTI_LABEL)
    }
    doubtful = {index for index, value in enumerate(column.values) if _reads_missing(value) and value not in known}
    doubtful |= _hidden(column.values, problem, known)
    gone = empty if missing == "keep" else empty | doubtful
    if not gone:
        return list(range(len(column.values)))
    first = min(gone)
    if len(gone) == len(column.values):
        raise DataError(
            f"none of the {len(gone)} images of {column.source} has a label ({column.at(first)}). Name the "
            "column of the labels with --label_column, or leave out a part whose labels are hidden."
        )
    if missing != "skip":
        keep = "" if first in empty else ", or --missing_labels keep if that is the name of a class"
        raise DataError(
            f"{len(gone)} of {len(column.values)} labels of {column.source} are missing: {column.at(first)}. Give "
            f"--missing_labels skip to leave such images out{keep}."
        )
    return [index for index in range(len(column.values)) if index not in gone]


def _reads_missing(value: Any) -> bool:
    return isinstance(value, str) and value.casefold() in NO_LABEL


def _hidden(values: Sequence[Any], problem: str, known: Sequence[str]) -> set[int]:
    """Return where -1 hides a class, as in unlabelled parts of data sets. Labels 1 and -1 alone are classes."""
    found = {index for index, value in enumerate(values) if value == UNKNOWN}
    if not found or problem == REGRESSION or known:
        return found if known and problem != REGRESSION and UNKNOWN not in known else set()
    others = {value for value in values if isinstance(value, str) and value and value != UNKNOWN}
    numbered = len(others) > 1 and all(map(str.isdigit, others))
    return found if numbered and (problem == SINGLE_LABEL or counts_up(others)) else set()


def counts_up(numbers: Collection[str]) -> bool:
    """Whether these are 0, 1, 2, ... or 1, 2, 3, ..., as numbers of classes are."""
    if not all(text.isdigit() and len(text) < 10 for text in numbers):
        return False
    values = {int(text) for text in numbers}
    return min(values) in (0, 1) and max(values) - min(values) == len(values) - 1


def class_names(column: Column, values: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All names among the labels, in order.

    Raises:
        DataError: one is longer than a name is, or there are fewer than two.
    """
    for index, own in enumerate(values):
        if any(len(name) > LONGEST for name in own):
            raise DataError(
                f"{column.full(index)} with {max(map(len, own))} characters. A class name has at most {LONGEST}. "
                "Name the column of the labels with --label_column."
            )
    names = tuple(sorted({name for own in values for name in own}, key=in_order))
    if len(names) < 2:
        raise DataError(f"{column.source} has {len(names)} classes in column {column.name!r}. Expected at least two.")
    return names


def refuse_strangers(column: Column, values: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """Raises:
    DataError: a label is not among the names.
    """
    known = set(names)
    for index, own in enumerate(values):
        stranger = next((name for name in own if name not in known), None)
        if stranger is not None:
            raise DataError(
                f"{column.source} has the class {shown(stranger)}, which the training part lacks: {column.at(index)}. "
                f"It has: {', '.join(map(str, names[:20]))}{', ...' if len(names) > 20 else ''}"
            )


def class_targets(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """Index of each label among the names, int64 (N,)."""
    places = {name: index for index, name in enumerate(names)}
    return torch.tensor([places[label] for label in labels], dtype=torch.int64)


def label_targets(labels: Sequence[Sequence[str]], names: Sequence[str]) -> Tensor:
    """Zeros and ones, float32 (N, K)."""
    places = {name: index for index, name in enumerate(names)}
    targets = torch.zeros(len(labels), len(names))
    for row, own in enumerate(labels):
        targets[row, [places[label] for label in own]] = 1
    return targets


def number_targets(column: Column) -> Tensor:
    """Numbers, float32 (N,).

    Raises:
        DataError: a value is not a number, or does not fit into float32.
    """
    numbers = []
    for index, value in enumerate(column.values):
        number = float(value) if isinstance(value, str) and is_number(value) else math.nan
        if not abs(number) <= torch.finfo(torch.float32).max:
            raise DataError(
                f"{column.full(index)}. Expected a number up to 3.4e38, with a point before its decimals, as in 1.5."
            )
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.float64).float()


def zeros_and_ones(column: Column) -> Tensor | None:
    """A column of zeros and ones as float32 (N,). None if it has other values."""
    texts = [value.casefold() if isinstance(value, str) else "" for value in column.values]
    if not all(text in ZERO or text in ONE for text in texts):
        return None
    return torch.tensor([float(text in ONE) for text in texts])
