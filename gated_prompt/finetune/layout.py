# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the names of folders say: the parts of a data set, and images and masks that lie side by side.

street/images/001.jpg              street/images/training/001.jpg         street/train/images/001.jpg
street/masks/001.png               street/annotations/training/001.png    street/train/masks/001.png
street/classes.txt                 (ADE20K's layout)

Names and JSON files are all that is read, and torch is not imported.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

TRAIN, VALIDATION, TEST = "train", "validation", "test"
WORDS = {
    TRAIN: "train|training",
    VALIDATION: "validation|validate|valid|val|dev|development",
    TEST: "test|testing|eval|evaluation|holdout",
}
IMAGES, MASKS = "images", ("masks", "annotations")
Pair = tuple[Path, Path]  # a folder of images, and that of their masks
# also matches train2017, 01_train, test_set and "Validation Data"
NAMES = {
    part: re.compile(rf"(\d+[-_ .]+)?({words})[-_ .]*(set|data|dataset|images?|imgs|pictures|photos|split)?[-_ .]*\d*")
    for part, words in WORDS.items()
}
FOLD = re.compile(r"(fold|split|part)[-_ .]*\d+", re.IGNORECASE)


def part_of(name: str) -> str | None:
    """The part that a folder's name stands for."""
    return next((part for part, form in NAMES.items() if form.fullmatch(name.strip().lower())), None)


def asks_for_masks(argv: Sequence[str] | None) -> bool:
    """Whether these arguments of `gated-prompt train` are about label maps. None means those of the process."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("problem", "train_dir", "dataset", "train_file"):
        parser.add_argument(f"--{name}")
    asked, _ = parser.parse_known_args(argv)
    if asked.problem not in (None, "auto"):
        return bool(asked.problem == "segmentation")
    if asked.train_file is not None:
        return Path(asked.train_file).suffix.lower() == ".json"
    return asked.train_dir is not None and bool(find_mask_folders(Path(asked.train_dir)))


def gives_masks(argv: Sequence[str] | None) -> bool:
    """Whether the adapters in these arguments of `gated-prompt predict` are about label maps."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--adapters", nargs="+", default=[])
    asked, _ = parser.parse_known_args(argv)
    return any(problem_of(Path(name)) == "segmentation" for name in asked.adapters)


def problem_of(folder: Path) -> str | None:
    """What an output folder, or a folder in it, says it is about. None if it says nothing."""
    for name in ("results.json", "predictor.json"):
        try:
            return str(json.loads((folder / name).read_text(encoding="utf-8"))["problem"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def find_mask_folders(folder: Path) -> dict[str, Pair]:
    """The folders of images and masks by part ("train", "validation", "test"), empty for another layout."""
    pair = _pair(folder)
    if pair is not None:
        parts = _parts(pair[0])
        if "train" in parts:
            return {
                part: (pair[0] / name, pair[1] / name) for part, name in parts.items() if (pair[1] / name).is_dir()
            }
        return {"train": pair}
    inside = {part: _pair(folder / name) for part, name in _parts(folder).items()}
    found = {part: each for part, each in inside.items() if each is not None}
    return found if "train" in found else {}


def _pair(folder: Path) -> Pair | None:
    masks = [folder / name for name in MASKS if (folder / name).is_dir()]
    return (folder / IMAGES, masks[0]) if masks and (folder / IMAGES).is_dir() else None


def _parts(folder: Path) -> Mapping[str, str]:
    """The names of the subfolders that are parts of the data."""
    if not folder.is_dir():
        return {}
    found = ((part_of(path.name), path.name) for path in sorted(folder.iterdir()) if path.is_dir())
    return {part: name for part, name in found if part is not None}
