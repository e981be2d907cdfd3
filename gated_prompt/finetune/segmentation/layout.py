# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Where images and masks lie side by side, told by the names of folders alone: torch is not imported.

street/images/001.jpg              street/images/training/001.jpg         street/train/images/001.jpg
street/masks/001.png               street/annotations/training/001.png    street/train/masks/001.png
street/classes.txt                 (ADE20K's layout)
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..part_names import part_of

IMAGES, MASKS = "images", ("masks", "annotations")
Pair = tuple[Path, Path]  # a folder of images, and that of their masks


def asks_for_masks(argv: Sequence[str] | None) -> bool:
    """Whether these arguments of `gated-prompt train` are about label maps; None: those of the process."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("problem", "train_dir", "dataset", "train_file"):
        parser.add_argument(f"--{name}")
    asked, _ = parser.parse_known_args(argv)
    if asked.problem not in (None, "auto"):
        return bool(asked.problem == "segmentation")
    if asked.train_file is not None:
        return Path(asked.train_file).suffix.lower() == ".json"
    return asked.train_dir is not None and bool(find_mask_folders(Path(asked.train_dir)))


def find_mask_folders(folder: Path) -> dict[str, Pair]:
    """The folders of images and masks by part ("train", "validation", "test"); empty where it has another layout."""
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
