# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A folder that is divided into train/, validation/ and test/: told from one with a class in each subfolder."""

from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from ..images import EXTENSIONS, shown_path
from .folder import subfolders, walk
from .part_names import TRAIN, part_of


def find_parts(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The parts that a folder is divided into, itself as "train" where it is not; and what lies beside them -> why.

    Subfolders are parts if their names say so and the images lie in folders of classes inside; a class may be called
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
        named = [part_of(path.name) for path in inside if _images(walk(path))]
        if len(named) > 1 and None not in named:
            raise DataError(
                f"{place} holds {', '.join(f'{part}/' for part in named)}, but their images lie in no folder of a "
                "class; sort them into folders, or list their labels in a file and give --train_file"
            )
        return {TRAIN: folder}, {}
    for part, paths in by_part.items():
        if len(paths) > 1:
            names = " and ".join(f"{shown_path(path.name)}/" for path in paths)
            raise DataError(
                f"{place} has {names}, which both look like the {part} part; name the folders with --train_dir, "
                "--validation_dir and --test_dir"
            )
    found = {part: paths[0] for part, paths in by_part.items()}
    if len(found) == 1:
        (part, path) = next(iter(found.items()))
        raise DataError(
            f"{place} holds {shown_path(path.name)}/, which looks like the {part} part, and no other part; give "
            f"--train_dir {shown_path(path)} to train on it and hold back a part for validation, or add "
            f"{'validation/' if part == TRAIN else 'train/'}"
        )
    if TRAIN not in found:
        raise DataError(
            f"{place} holds {' and '.join(sorted(f'{shown_path(p.name)}/' for p in found.values()))}, but no train/; "
            "name the folders with --train_dir, --validation_dir and --test_dir"
        )
    others = [path for path in inside if path not in found.values()]
    return found, {f"{shown_path(path.name)}/": "lies beside the parts and is none of them" for path in others}


def _divided(folder: Path) -> bool:
    """Whether images lie in folders inside this one, as in a part, and not in it, as in a class."""
    inside = [count for count in map(_images, map(walk, subfolders(folder))) if count]
    loose = _images(path for path in folder.iterdir() if path.is_file())
    return sum(inside) > loose and (len(inside) > 1 or not loose)


def _images(files: Iterable[Path]) -> int:
    return sum(path.suffix.lower() in EXTENSIONS for path in files)
