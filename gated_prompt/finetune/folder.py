# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A folder with a subfolder for each class."""

import os
import unicodedata
from functools import partial
from pathlib import Path

from PIL import Image

from ..errors import DataError
from .image_set import CLASSES, ImageSet, Picture, class_targets

Image.init()
EXTENSIONS = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
PARTS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}


def find_parts(folder: Path) -> dict[str, Path]:
    """The parts that a folder is divided into by the names of its subfolders; itself as "train" where it is not."""
    inside = {path.name.lower(): path for path in _folders(folder)}
    found = {part: inside[name] for part, names in PARTS.items() for name in names if name in inside}
    if "train" in found and len(found) == len(inside) > 1:
        return found
    return {"train": folder}


def read_folder(folder: Path, names: tuple[str, ...] | None = None) -> ImageSet:
    """The images below each subfolder, at any depth; its name is their class.

    Hidden files and folders are passed over. `names`: the classes where they are known from another part.

    Raises:
        DataError: there is no such folder, it has fewer than two classes with images, or one that is unknown.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give one that holds a subfolder for each class")
    skipped = {path.name: "lies in no class folder" for path in sorted(folder.iterdir()) if path.is_file()}
    skipped = {name: reason for name, reason in skipped.items() if not name.startswith(".")}
    files: dict[str, list[Path]] = {}
    for path in _folders(folder):
        own = files.setdefault(unicodedata.normalize("NFC", path.name), [])
        for place, inner, found in os.walk(path):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(found):
                file = Path(place, name)
                if name.startswith("."):
                    continue
                if file.suffix.lower() in EXTENSIONS:
                    own.append(file)
                else:
                    skipped[str(file.relative_to(folder))] = "is no image, by its name"
    if names is None:
        names = tuple(name for name, own in files.items() if own)
        skipped |= {name: "is a folder without images" for name, own in files.items() if not own}
        if len(names) < 2:
            raise DataError(
                f"{folder} has {len(names)} subfolders with images; at least two are needed, one for each class: "
                f"{folder}/cat/001.jpg, {folder}/dog/001.jpg, ..."
            )
    strangers = [name for name, own in files.items() if own and name not in names]
    if strangers:
        raise DataError(
            f"{folder} has the class {strangers[0]!r}, which the training part lacks; it has: {', '.join(names)}"
        )
    found_files = [(file, name) for name, own in files.items() for file in own]
    if not found_files:
        raise DataError(f"{folder} holds no images in the folders {', '.join(names)}")
    pictures = [Picture(str(file.relative_to(folder)), partial(_same, file)) for file, _ in found_files]
    targets = class_targets([name for _, name in found_files], names)
    return ImageSet(pictures, targets, CLASSES, names, str(folder), skipped)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _same(file: Path) -> Path:
    return file
