# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Which value or colour of a label map is which class."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...segmenter import IGNORE

Colour = tuple[int, int, int]
BACKGROUND = "background"
MOST_CLASSES = IGNORE  # 0 to 254


@dataclass(frozen=True)
class ClassTable:
    """The K classes of a data set.

    Attributes:
        names: of the classes, in the order of the labels 0 to K - 1.
        values: what masks store for each: a number, or a colour packed by `pack`.
        ignored: stored values that become `IGNORE`.
        colours: of each class, where masks store colours.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    colours: tuple[Colour, ...] | None = None

    def labels(self, stored: np.ndarray, mask: str) -> np.ndarray:
        """Labels uint8 (H, W) of the stored values (H, W) of a mask of this name.

        Raises:
            DataError: a value is neither a class nor ignored.
        """
        self.check(count_values(stored)[0], mask)
        order = np.argsort((*self.values, *self.ignored))
        known = np.array((*self.values, *self.ignored))[order]
        labels = np.array((*range(len(self.values)), *[IGNORE] * len(self.ignored)), dtype=np.uint8)[order]
        found: np.ndarray = labels[np.searchsorted(known, stored)]
        return found

    def check(self, found: Iterable[int], mask: str) -> None:
        """Raises:
        DataError: one of the values is neither a class nor ignored.
        """
        strangers = sorted(set(found) - {*self.values, *self.ignored})
        if strangers:
            shown = ", ".join(map(self.show, strangers[:5]))
            known = ", ".join(f"{self.show(v)} {n}" for v, n in list(zip(self.values, self.names, strict=True))[:8])
            raise DataError(
                f"the mask {mask} has {shown}{', ...' if len(strangers) > 5 else ''}, which is not a class. The "
                "classes are "
                f"{known}{', ...' if len(self.values) > 8 else ''}. Correct the mask or the list of classes, or give "
                "--ignore_label. A mask that was saved as JPEG has such values along its edges, so save masks as PNG."
            )

    def show(self, value: int) -> str:
        return str(value) if self.colours is None else "colour ({}, {}, {})".format(*unpack(value))

    def without(self, asked: Sequence[str]) -> "ClassTable":
        """The table with these classes ignored. Each is a name, or a number that masks store.

        Raises:
            DataError: a name is unknown, or fewer than two classes remain.
        """
        table = self
        for one in asked:
            if one in table.names:
                value = table.values[table.names.index(one)]
            elif one.isdecimal() and table.colours is None:
                value = int(one)
            else:
                raise DataError(f"--ignore_label {one!r} is not a class. Choose from: {', '.join(self.names)}.")
            keep = [place for place, known in enumerate(table.values) if known != value]
            table = replace(
                table,
                names=tuple(table.names[place] for place in keep),
                values=tuple(table.values[place] for place in keep),
                ignored=tuple(sorted({*table.ignored, value})),
                colours=table.colours and tuple(table.colours[place] for place in keep),
            )
        if not 2 <= len(table.names) <= MOST_CLASSES:
            raise DataError(f"the masks have {len(table.names)} classes. Expected 2 to {MOST_CLASSES}.")
        return table


def from_names(names: Sequence[str], first: int = 0) -> ClassTable:
    """Masks store `first` for the first name, and so on; 255 is ignored where it is no class."""
    values = range(first, first + len(names))
    return ClassTable(_checked(names), tuple(values), tuple({*range(first), IGNORE} - {*values}))


def from_values(values: Iterable[int]) -> ClassTable:
    """The values that masks were found to store are the classes; 255 is ignored where two others are left."""
    found = sorted(set(values))
    classes = [value for value in found if value != IGNORE]
    if len(classes) < 2:
        classes = found
    return ClassTable(tuple(map(str, classes)), tuple(classes), tuple(set(found) - set(classes)))


def from_palette(file: Path) -> ClassTable:
    """A CSV file with a line for each class: its name and the red, green and blue that masks store.

    Raises:
        DataError: a line is something else, or a name or a colour comes twice.
    """
    try:
        rows = [row for row in csv.reader(file.read_text(encoding="utf-8-sig").splitlines()) if any(row)]
    except OSError as error:
        raise DataError(f"cannot read --palette {file}: {error.strerror}") from error
    if rows and not any(cell.strip().isdecimal() for cell in rows[0]):
        rows = rows[1:]  # the header
    names, colours = [], []
    for row in rows:
        cells = [cell.strip() for cell in row]
        if len(cells) != 4 or not all(cell.isdecimal() and int(cell) <= 255 for cell in cells[1:]):
            raise DataError(
                f"--palette {file} has the line {','.join(row)!r}. Expected 'name,red,green,blue', with colours from "
                "0 to 255."
            )
        names.append(cells[0])
        colours.append((int(cells[1]), int(cells[2]), int(cells[3])))
    if len(set(colours)) < len(colours):
        raise DataError(f"--palette {file} gives two classes the same colour")
    values = tuple(int(pack(np.array(colour))) for colour in colours)
    return ClassTable(_checked(names), values, (), tuple(colours))


def read_names(file: Path) -> list[str]:
    """The names in classes.txt, one a line, the class of value 0 first.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"cannot read the names of the classes in {file}: {error.strerror}") from error


def count_values(stored: np.ndarray) -> tuple[list[int], list[int]]:
    """The values of a mask, and the number of pixels of each."""
    if stored.min() >= 0 and stored.max() < 65536:  # ten times as fast as sorting
        counts = np.bincount(stored.ravel())
        values = np.flatnonzero(counts)
        return values.tolist(), counts[values].tolist()
    values, counts = np.unique(stored, return_counts=True)
    return values.tolist(), counts.tolist()


def pack(colours: np.ndarray) -> np.ndarray:
    """Colours (..., 3) as one number each."""
    parts = colours.astype(np.int64)
    packed: np.ndarray = parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]
    return packed


def unpack(value: int) -> Colour:
    return value >> 16, value >> 8 & 255, value & 255


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"the class {twice!r} is named twice")
    return tuple(names)
