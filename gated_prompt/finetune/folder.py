# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A folder with a subfolder for each class, or with such folders for train, validation and test."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from ..errors import DataError
from ..images import EXTENSIONS, shown_path
from .image_set import SINGLE_LABEL, ImageSet, Picture
from .labels import class_targets, clean, in_order
from .layout import FOLD, TRAIN, part_of

NO_CONTENT = {"__MACOSX", "@eaDir"}  # what macOS and NAS systems add to folders and archives


def read_folder(folder: Path, names: tuple[str, ...] = ()) -> ImageSet:
    """The images below each subfolder, at any depth. Its name is their class.

    Hidden files and folders are passed over. `names`: the classes where they are known from another part.

    Raises:
        DataError: there is no such folder, it has fewer than two classes with images, or one that is unknown.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {shown_path(folder)}. Give one that holds a subfolder for each class.")
    loose = sorted(path for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))
    skipped = {shown_path(path.name): "is not in a class folder" for path in loose}
    files: dict[str, list[Path]] = {}
    for path in subfolders(folder):
        own = files.setdefault(class_of(path), [])
        for file in walk(path):
            if file.suffix.lower() in EXTENSIONS:
                own.append(file)
            else:
                skipped[shown_path(file.relative_to(folder))] = "the name is not that of an image"
    filled = sorted((name for name, own in files.items() if own), key=in_order)
    skipped |= {name: "is a folder without images" for name, own in files.items() if not own}
    source = shown_path(folder)
    if not names and len(filled) < 2:
        raise DataError(
            f"{source} has {len(filled)} subfolders with images. Expected at least two, one for each class: "
            f"{source}/cat/001.jpg, {source}/dog/001.jpg, ..."
        )
    names = names or tuple(filled)
    strangers = [name for name in filled if name not in names]
    if strangers:
        raise DataError(
            f"{source} has the class {strangers[0]!r}, which the training part lacks. It has: {', '.join(names)}."
        )
    found = [(file, name) for name in filled for file in files[name]]
    if not found:
        raise DataError(f"{source} holds no images in the folders {', '.join(names)}")
    pictures = [Picture(shown_path(file.relative_to(folder)), partial(_same, file)) for file, _ in found]
    targets = class_targets([name for _, name in found], names)
    return ImageSet(
        pictures, targets, SINGLE_LABEL, names, source, skipped, f"{source} has a subfolder for each class"
    )


def subfolders(folder: Path) -> list[Path]:
    """The folders inside one that can hold images, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def walk(folder: Path) -> list[Path]:
    """The files below a folder, at any depth, that are not hidden."""
    found = []
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not is_hidden(name))
        found += [Path(place, name) for name in sorted(files) if not is_hidden(name)]
    return found


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in NO_CONTENT


def class_of(folder: Path) -> str:
    """The class that a folder is for."""
    return str(clean(shown_path(folder.name)))


def _same(file: Path) -> Path:
    return file


def find_parts(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the parts of a folder (itself as "train" if it has none), and what lies beside them, with the reason.

    Subfolders are parts if their names say so and the images lie in folders of classes inside. A class may be called
    "train" too.

    Raises:
        DataError: it is divided, but there are two folders for one part, or parts are missing.
    """
    inside = subfolders(folder)
    by_part: dict[str, list[Path]] = {}
    for path in inside:
        part = part_of(path.name)
        if part is not None and _divided(path):
            by_part.setdefault(part, []).append(path)
    place = shown_path(folder)
    if not by_part:
        named = [part_of(path.name) for path in inside if _count_images(walk(path))]
        if len(named) > 1 and None not in named:
            raise DataError(
                f"{place} holds {', '.join(f'{part}/' for part in named)}, but their images are not in folders of a "
                "class. Sort them into folders, or list their labels in a file and give --train_file."
            )
        folds = [f"{shown_path(path.name)}/" for path in inside if FOLD.fullmatch(path.name) and _divided(path)]
        if len(folds) > 1:
            raise DataError(
                f"{place} holds {', '.join(folds)}, which look like folds of one data set rather than classes. Name "
                "two of them with --train_dir and --validation_dir, or rename them if they are classes."
            )
        return {TRAIN: folder}, {}
    for part, paths in by_part.items():
        if len(paths) > 1:
            names = " and ".join(f"{shown_path(path.name)}/" for path in paths)
            raise DataError(
                f"{place} has {names}, which both look like the {part} part. Name the folders with --train_dir, "
                "--validation_dir and --test_dir."
            )
    found = {part: paths[0] for part, paths in by_part.items()}
    if len(found) == 1:
        (part, path) = next(iter(found.items()))
        raise DataError(
            f"{place} holds {shown_path(path.name)}/, which looks like the {part} part, and no other part. Give "
            f"--train_dir {shown_path(path)} to train on it and hold back a part for validation, or add "
            f"{'validation/' if part == TRAIN else 'train/'}."
        )
    if TRAIN not in found:
        raise DataError(
            f"{place} holds {' and '.join(sorted(f'{shown_path(p.name)}/' for p in found.values()))}, but no train/. "
            "Name the folders with --train_dir, --validation_dir and --test_dir."
        )
    others = [path for path in inside if path not in found.values()]
    return found, {f"{shown_path(path.name)}/": "is not one of the parts that it lies beside" for path in others}


def _divided(folder: Path) -> bool:
    """Whether images lie in folders inside this one, as in a part, and not in it, as in a class."""
    inside = [count for count in map(_count_images, map(walk, subfolders(folder))) if count]
    loose = _count_images(path for path in folder.iterdir() if path.is_file())
    return sum(inside) > loose and (len(inside) > 1 or not loose)


def _count_images(files: Iterable[Path]) -> int:
    return sum(path.suffix.lower() in EXTENSIONS for path in files)
