# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read the official image lists of the fine-grained data sets from the files distributed with them.

    cub, nabirds   images.txt, image_class_labels.txt, train_test_split.txt. Images in images/
    flowers        setid.mat, imagelabels.mat. Images in jpg/
    dogs           train_list.mat, test_list.mat. Images in Images/
    cars           devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat. Images in cars_train/ and cars_test/

Each reader maps an official split to (image path, class) pairs, with classes counted from 0. Reading .mat files
requires `scipy`.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError

Entries = dict[str, list[tuple[Path, int]]]


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"{file} is missing. It is distributed with the data set.")
    return file


def _columns(file: Path) -> dict[str, str]:
    """Read lines of the form "key value"."""
    pairs = {}
    for number, line in enumerate(_existing(file).read_text(encoding="utf-8").splitlines(), 1):
        key, _, value = line.strip().partition(" ")
        if not value:
            raise DataError(f"{file}, line {number}: expected 'image value', found {line!r}.")
        pairs[key] = value
    return pairs


def _birds(folder: Path) -> Entries:
    paths = _columns(folder / "images.txt")
    labels = _columns(folder / "image_class_labels.txt")
    is_training = _columns(folder / "train_test_split.txt")
    if not paths.keys() == labels.keys() == is_training.keys():
        raise DataError(
            f"images.txt, image_class_labels.txt and train_test_split.txt in {folder} do not list the same images."
        )
    # NABirds' class ids have gaps: only the leaves of its class hierarchy have images.
    classes = {label: i for i, label in enumerate(sorted(set(labels.values()), key=int))}
    entries: Entries = {"train": [], "test": []}
    for key, path in paths.items():
        entries["train" if is_training[key] == "1" else "test"].append(
            (folder / "images" / path, classes[labels[key]])
        )
    return entries


def read_mat(file: Path) -> Mapping[str, Any]:
    """Read the variables of a MATLAB file.

    Raises:
        DataError: The file is missing or is not a MATLAB file.
        ImportError: scipy is not installed.
    """
    try:
        scipy_io = importlib.import_module("scipy.io")  # optional and untyped
    except ImportError as error:
        raise ImportError(f"reading {file} requires scipy: pip install scipy") from error
    try:
        return scipy_io.loadmat(_existing(file), simplify_cells=True)
    except (scipy_io.matlab.MatReadError, ValueError, OSError) as error:
        raise DataError(f"{file} is not a MATLAB file: {error}") from None


def _flowers(folder: Path) -> Entries:
    labels = read_mat(folder / "imagelabels.mat")["labels"]
    ids = read_mat(folder / "setid.mat")
    return {
        split: [(folder / "jpg" / f"image_{i:05d}.jpg", int(labels[i - 1]) - 1) for i in ids[key]]
        for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }


def _dogs(folder: Path) -> Entries:
    entries: Entries = {}
    for split in ("train", "test"):
        lists = read_mat(folder / f"{split}_list.mat")
        names, labels = lists["file_list"], lists["labels"]
        entries[split] = [(folder / "Images" / n, int(k) - 1) for n, k in zip(names, labels, strict=True)]
    return entries


def _cars(folder: Path) -> Entries:
    files = {"train": folder / "devkit" / "cars_train_annos.mat", "test": folder / "cars_test_annos_withlabels.mat"}
    return {
        split: [
            (folder / f"cars_{split}" / Path(each["fname"]).name, int(each["class"]) - 1)
            for each in read_mat(file)["annotations"]
        ]
        for split, file in files.items()
    }


READERS: Mapping[str, Callable[[Path], Entries]] = {
    "cub": _birds,
    "nabirds": _birds,
    "flowers": _flowers,
    "dogs": _dogs,
    "cars": _cars,
}
