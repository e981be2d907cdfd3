# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read the three parts of the data that the arguments name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from .arguments import DataArguments
from .folder import read_folder
from .folder_parts import find_parts
from .hub import hub_parts, read_split
from .image_set import NUMBERS, ImageSet, contradictions
from .left_out import say
from .splits import draw_shots, hold_back
from .table import Reading, read_table, reading_like

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Parts:
    """The images to train on, those that choices are made by, and those, if any, that are scored at the end.

    `keys`: a fingerprint of each part by its name. `left_out`: files and images -> why.
    `contradictions`: images with the same content and different labels.
    `held_back`: the validation part is one of the training images.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet | None
    keys: dict[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    contradictions: Sequence[str] = ()
    held_back: bool = False


def read_parts(args: DataArguments, show: bool) -> Parts:
    """Read, check and divide the images; `show` a progress bar, and say what they were taken for and what is left out.

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
    what = f"{data.read_as}; {len(data)} images, {data.problem}: {shown}"
    if data.problem == NUMBERS:
        what += f", from {float(data.targets.min()):g} to {float(data.targets.max()):g}"
    folded: dict[str, str] = {}
    for name in data.names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            what += f"\n{other!r} and {name!r} differ in case alone and are two classes"
    return what


def _readers(args: DataArguments) -> tuple[dict[str, Callable[[Reading], ImageSet]], dict[str, str]]:
    """By part, what reads it; and what lies beside the parts of a folder -> why it is left out."""
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
    name = str(args.dataset)
    data: Any = hub_parts(name, args.dataset_revision)
    splits = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    found = {part: split for part, split in splits.items() if split is not None}
    missing = [split for split in found.values() if split not in data]
    if missing:
        raise DataError(f"{name} has no split {missing[0]!r}; it has: {', '.join(data)}")
    columns = args.image_column, args.label_column
    return {p: partial(_read_split, data[split], columns, f"{name} {split}") for p, split in found.items()}


def _read_split(rows: Any, columns: tuple[str, list[str]], source: str, reading: Reading) -> ImageSet:
    return read_split(rows, *columns, reading, source)


def _existing(folder: str, option: str) -> Path:
    if not Path(folder).is_dir():
        raise DataError(f"{option} {folder!r} is no folder; give one that holds a subfolder for each class")
    return Path(folder)
