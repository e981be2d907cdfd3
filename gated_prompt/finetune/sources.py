# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read the three parts of the data that the arguments name: folders, tables, data sets of the Hub."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..sharing.quoting import line
from .arguments import DataArguments
from .division import Parts, draw_shots, hold_back
from .folder import find_parts, read_folder
from .image_set import LABEL_NOUNS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, ImageSet, Picture, contradictions
from .labels import Column, Reading, clean, looks, reading_like
from .shared_arguments import PartArguments
from .table import make_set, read_table

MOST_LINES = 5


def say(what: str, lines: Sequence[str]) -> None:
    """Print the first lines after `what`, and how many more there are."""
    for text in lines[:MOST_LINES]:
        print(f"{what}: {line(text)}")
    if len(lines) > MOST_LINES:
        print(f"{what}: {len(lines) - MOST_LINES} more")


def hub_splits(args: PartArguments) -> dict[str, tuple[Any, str]]:
    """The rows of each part that is asked for, and their name for messages.

    Raises:
        DataError: the data set cannot be loaded, or lacks a split.
    """
    from datasets import load_dataset

    try:
        data: Any = load_dataset(args.dataset, revision=args.dataset_revision)
    except Exception as error:  # datasets raises a dozen kinds of error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot load --dataset {args.dataset!r}: {reason}. "
            "Give a Hub id that can be reached, or a folder of parquet files."
        ) from error
    asked = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    missing = [split for split in asked.values() if split is not None and split not in data]
    if missing:
        raise DataError(f"{args.dataset} has no split {missing[0]!r}. It has: {', '.join(data)}.")
    return {part: (data[split], f"{args.dataset} {split}") for part, split in asked.items() if split is not None}


def read_split(rows: Any, image_column: str, label_columns: Sequence[str], reading: Reading, source: str) -> ImageSet:
    """One split. Names of classes are those of the column's feature where it has them.

    Raises:
        DataError: a column is missing or holds no images, or a label is wrong.
    """
    from datasets import Image

    asked = [("--image_column", image_column), *(("--label_column", name) for name in label_columns)]
    for option, column in asked:
        if column not in rows.column_names:
            raise DataError(
                f"{source} has no column {column!r}. It has {', '.join(rows.column_names)}. Give {option}."
            )
    if not isinstance(rows.features[image_column], Image):
        raise DataError(f"the column {image_column!r} of {source} holds no images. Give another --image_column.")
    stored = rows.cast_column(image_column, Image(decode=False))
    pictures = [Picture(f"{source} {i}", partial(read_stored, stored, i, image_column)) for i in range(len(rows))]
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
        reading,
        problem=SINGLE_LABEL if inner is feature else MULTI_LABEL,
        names=tuple(dict.fromkeys(clean(inner.names))),
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


def read_stored(rows: Any, index: int, column: str) -> Path | bytes:
    stored = rows[index][column]
    if stored is None:
        raise DataError(f"row {index} has no image")
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])


PARTS = ("train", "validation", "test")


def read_parts(args: DataArguments, show: bool) -> Parts:
    """Read, check and divide the images. `show` a progress bar, and say what they were taken for and what is left out.

    Raises:
        DataError: the data are not what they should be.
    """
    asked = Reading(args.problem, args.label_separator, args.missing_labels)
    readers, beside = _readers(args)
    train = readers["train"](asked)
    if show:
        print(_summary(train))
    later = reading_like(train, asked)
    validation, test = (readers[part](later) if part in readers else None for part in PARTS[1:])
    train, key = train.without_broken(show)
    keys = {"train": key}
    given = {"train": train}
    if validation is not None:
        validation, keys["validation"] = validation.without_broken(show)
        given["validation"] = validation
    if test is not None:
        test, keys["test"] = test.without_broken(show)
        given["test"] = test
    found = contradictions(given)
    left_out = {**beside, **{name: why for data in given.values() for name, why in data.skipped.items()}}
    if show:
        say("left out", [f"{name}: {why}" for name, why in left_out.items()])
        say("the same content with different labels", found)
    held_back = validation is None and args.shots is None
    if validation is None:
        train, validation = hold_back(train, args.validation_share, args.split_seed)
        keys |= {part: f"{key}-{part}-{args.validation_share}-{args.split_seed}" for part in PARTS[:2]}
    if args.shots is not None:
        train = draw_shots(train, args.shots, args.split_seed)
        keys["train"] += f"-{args.shots}-{args.split_seed}"
    return Parts(train, validation, test, keys, left_out, found, held_back)


def _summary(data: ImageSet) -> str:
    """What the labels were taken for, and the names."""
    shown = ", ".join(data.names[:10]) + (f", ... ({len(data.names)} in all)" if len(data.names) > 10 else "")
    what = f"{data.read_as}, {len(data)} images, {LABEL_NOUNS[data.problem]}: {shown}"
    if data.problem == REGRESSION:
        what += f", from {float(data.targets.min()):g} to {float(data.targets.max()):g}"
    folded: dict[str, str] = {}
    for name in data.names:
        other = folded.setdefault(looks(name), name)
        if other != name:
            what += f"\n{other!a} and {name!a} look alike and are two classes"
    return what


def _readers(args: DataArguments) -> tuple[dict[str, Callable[[Reading], ImageSet]], dict[str, str]]:
    """Return the reader of each part, and what lies beside the parts of a folder, with the reason to leave it out."""
    if args.train_dir is not None:
        folders, beside = find_parts(_existing(args.train_dir, "--train_dir"))
        for part, folder in (("validation", args.validation_dir), ("test", args.test_dir)):
            if folder is not None:
                folders[part] = _existing(folder, f"--{part}_dir")
        return {part: partial(_read_folder, folder) for part, folder in folders.items()}, beside
    if args.train_file is not None:
        files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        columns = args.image_column, args.label_column
        return {p: partial(read_table, Path(file), *columns) for p, file in files.items() if file is not None}, {}
    return _split_readers(args), {}


def _read_folder(folder: Path, reading: Reading) -> ImageSet:
    return read_folder(folder, reading.names)


def _split_readers(args: DataArguments) -> dict[str, Callable[[Reading], ImageSet]]:
    columns = args.image_column, args.label_column
    return {part: partial(_read_split, rows, columns, source) for part, (rows, source) in hub_splits(args).items()}


def _read_split(rows: Any, columns: tuple[str, list[str]], source: str, reading: Reading) -> ImageSet:
    return read_split(rows, *columns, reading, source)


def _existing(folder: str, option: str) -> Path:
    if not Path(folder).is_dir():
        raise DataError(f"{option} {folder!r} is not a folder. Give one that holds a subfolder for each class.")
    return Path(folder)
