# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read the three parts of the data that the arguments name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from .arguments import DataArguments
from .folder import find_parts, read_folder
from .hub import hub_parts, read_split
from .image_set import ImageSet
from .splits import draw_shots, hold_back
from .table import read_table

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Parts:
    """The images to train on, those that choices are made by, and those, if any, that are scored at the end.

    `keys`: a fingerprint of each part by its name.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet | None
    keys: dict[str, str]


def read_parts(args: DataArguments, show: bool) -> Parts:
    """Read, check and divide the images; `show` a progress bar.

    Raises:
        DataError: the data are not what they should be.
    """
    readers = _readers(args)
    train = readers["train"](None)
    validation, test = (readers[part](train.names) if part in readers else None for part in PARTS[1:])
    for part in (validation, test):
        if part is not None and part.problem != train.problem:
            raise DataError(f"{part.source} has {part.problem} where the training part has {train.problem}")
    train, key = train.without_broken(show)
    keys = {"train": key}
    if validation is None:
        train, validation = hold_back(train, args.validation_share, args.split_seed)
        keys = {part: f"{key}-{part}-{args.validation_share}-{args.split_seed}" for part in PARTS[:2]}
    else:
        validation, keys["validation"] = validation.without_broken(show)
    if args.shots is not None:
        train = draw_shots(train, args.shots, args.split_seed)
        keys["train"] += f"-{args.shots}-{args.split_seed}"
    if test is not None:
        test, keys["test"] = test.without_broken(show)
    return Parts(train, validation, test, keys)


def _readers(args: DataArguments) -> dict[str, Callable[[tuple[str, ...] | None], ImageSet]]:
    """By part, what reads it once the names of its classes are known."""
    if args.train_dir is not None:
        folders = find_parts(_existing(args.train_dir, "--train_dir"))
        for part, folder in (("validation", args.validation_dir), ("test", args.test_dir)):
            if folder is not None:
                folders[part] = _existing(folder, f"--{part}_dir")
        return {part: partial(read_folder, folder) for part, folder in folders.items()}
    if args.train_file is not None:
        files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        columns = args.image_column, args.label_column, args.problem
        return {p: partial(read_table, Path(file), *columns) for p, file in files.items() if file is not None}
    return _split_readers(args)


def _split_readers(args: DataArguments) -> dict[str, Callable[[tuple[str, ...] | None], ImageSet]]:
    name = str(args.dataset)
    data: Any = hub_parts(name, args.dataset_revision)
    splits = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    found = {part: split for part, split in splits.items() if split is not None}
    missing = [split for split in found.values() if split not in data]
    if missing:
        raise DataError(f"{name} has no split {missing[0]!r}; it has: {', '.join(data)}")
    columns = args.image_column, args.label_column, args.problem
    return {p: partial(_read_split, data[split], columns, f"{name} {split}") for p, split in found.items()}


def _read_split(rows: Any, columns: tuple[str, str, str], source: str, names: tuple[str, ...] | None) -> ImageSet:
    return read_split(rows, *columns, names, source)


def _existing(folder: str, option: str) -> Path:
    if not Path(folder).is_dir():
        raise DataError(f"{option} {folder!r} is no folder; give one that holds a subfolder for each class")
    return Path(folder)
