# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What kind of labels a column holds. If that is not clear, an error asks the user."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError
from ..predictor import Problem
from .image_set import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .labels import Column, counts_up, is_number

SEPARATORS = (";", ",", "|")  # between the labels of one image
FEW = 10  # up to so many different whole numbers are surely classes
EACH = 4  # with fewer images per class on average, whole numbers are more likely counts


@dataclass(frozen=True)
class Kind:
    """What labels are, with `why` for the user, and what separates several of one image in a cell."""

    problem: Problem
    why: str
    separator: str | None = None


def recognize(column: Column, asked: str, separator: str | None) -> Kind:
    """What the labels of a column are.

    Args:
        column: the labels, without those that are missing.
        asked: a problem, or "auto".
        separator: what was asked to separate several labels. None means that it is inferred.

    Raises:
        DataError: it could be more than one thing. The message says which options decide.
    """
    lists = [isinstance(value, list) for value in column.values]
    if any(lists):
        return _of_lists(column, asked, lists)
    if asked == REGRESSION:
        return Kind(REGRESSION, "as --problem says")
    if asked == MULTI_LABEL:
        found = _separator(column) if separator is None else separator
        return Kind(MULTI_LABEL, f"as --problem says, separated by {found!r}" if found else "as --problem says", found)
    if asked == SINGLE_LABEL:
        return Kind(SINGLE_LABEL, "as --problem says")
    return _of_numbers(column) or _of_words(column)


def _of_lists(column: Column, asked: str, lists: Sequence[bool]) -> Kind:
    if not all(lists):
        raise DataError(f"{column.full(lists.index(False))}, where others have lists. Give a list for every image.")
    if asked not in ("auto", MULTI_LABEL):
        raise DataError(f"{column.source} has lists in column {column.name!r}, which fit no --problem {asked}")
    texts = {text for value in column.values for text in value}
    vectors = len({len(value) for value in column.values}) == 1 and len(column.values[0]) > 1
    if any(_has_fraction(text) for text in texts) or (vectors and texts <= {"0", "1"}):
        raise DataError(
            f"{column.full(0)}, a vector. A list holds the names of an image's labels. Give a column for each label, "
            "with 0 and 1, and name them all: --label_column a b c."
        )
    return Kind(MULTI_LABEL, "the column holds lists")


def _of_numbers(column: Column) -> Kind | None:
    """The kind of a column in which most values are numbers."""
    texts = column.values
    numbers = {text for text in texts if is_number(text)}
    fraction = next((text for text in texts if text in numbers and _has_fraction(text)), None)
    share = sum(text in numbers for text in texts) / len(texts)
    other = next((index for index, text in enumerate(texts) if text not in numbers), None)
    if other is not None:
        if share >= 0.5 and (fraction is not None or len(numbers) > FEW):
            raise DataError(
                f"most values of column {column.name!r} of {column.source} are numbers, but {column.at(other)}. "
                f"Correct it, or give --problem {SINGLE_LABEL} if these are the names of classes."
            )
        return None
    if fraction is not None:
        return Kind(REGRESSION, f"it holds numbers with a fraction, such as {fraction}")
    count = len(numbers)
    if any(len(text) > 1 and text.startswith("0") and text.isdigit() for text in numbers):
        return Kind(SINGLE_LABEL, "numbers with leading zeros are names")
    if count > FEW and (not counts_up(numbers) or len(texts) < EACH * count):
        raise DataError(
            f"column {column.name!r} of {column.source} has {count} different whole numbers for {len(texts)} images. "
            f"Give --problem {REGRESSION} to predict them as values (ages, counts), or --problem {SINGLE_LABEL} if "
            "each is a class"
        )
    return Kind(SINGLE_LABEL, f"it holds {count} different whole numbers")


def _of_words(column: Column) -> Kind:
    texts = column.values
    different = set(texts)
    listed = next((index for index, text in enumerate(texts) if text[:1] == "[" and text[-1:] == "]"), None)
    if listed is not None:
        raise DataError(
            f"{column.full(listed)}, which looks like a list. Write several labels with ';' between them, or as lists "
            f"in a JSONL file, or give --problem {SINGLE_LABEL} if it is the name of a class."
        )
    for sign in SEPARATORS:
        first = next((index for index, text in enumerate(texts) if sign in text), None)
        if first is not None and (sign == SEPARATORS[0] or _share_parts(different, sign)):
            decimals = sign == "," and all(is_number(text.replace(",", ".", 1)) for text in different)
            raise DataError(
                f"{column.full(first)}, which can be one class or several labels. Give --problem {MULTI_LABEL} to "
                f"split at {sign!r}, or --problem {SINGLE_LABEL} if it is the name of a class"
                + (", or write numbers with a point, as in 1.5." if decimals else ".")
            )
    if len(different) > max(FEW, len(texts) / 2):
        raise DataError(
            f"column {column.name!r} of {column.source} has {len(different)} different texts for {len(texts)} images, "
            f"such as {column.at(0)}. Give --problem {SINGLE_LABEL} if each is a class, or name the column of the "
            "labels with --label_column."
        )
    return Kind(SINGLE_LABEL, f"it holds {len(different)} different texts")


def _separator(column: Column) -> str | None:
    """What separates several labels in the cells of a column. None if no cell has several."""
    cells = {text for text in column.values if text}
    used = [sign for sign in SEPARATORS if any(sign in text for text in cells)]
    if len(used) > 1 or (not used and _share_parts(cells, " ")):
        signs = " and ".join(map(repr, used or [" "]))
        raise DataError(
            f"cells of column {column.name!r} of {column.source} have {signs} in them. Say what separates "
            f"labels, such as --label_separator {used[0] if used else repr(' ')}."
        )
    return used[0] if used else None


def _share_parts(texts: set[str], sign: str) -> bool:
    """Whether a part of one text between `sign` is another text, or a part of it."""
    found: set[str] = set()
    for text in texts:
        parts = {part for part in map(str.strip, text.split(sign)) if part}
        if found & parts:
            return True
        found |= parts
    return False


def _has_fraction(text: str) -> bool:
    return is_number(text) and not float(text).is_integer() and abs(float(text)) != float("inf")
