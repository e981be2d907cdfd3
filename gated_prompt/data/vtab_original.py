# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k tasks from the original data sets, unpacked.

This module reads dtd and kitti. `vtab_original_files` and `vtab_original_arrays` read the others.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import DataError
from ..images import ImageFiles, LabelledImages, Provenance
from .vtab_labels import kitti_distance_of_text
from .vtab_original_arrays import ARRAYS, PixelRows
from .vtab_original_files import FILES
from .vtab_splits import split_keys, tfds_order
from .vtab_tasks import check_split, find_task

Key = TypeVar("Key", str, int)
_EXACT = "VTAB's own images, identified by their original file names."
_EXACT_ROWS = "VTAB's own images, identified by their rows in the original files."
UNREADABLE = {
    "caltech101": "its split draws 30 images per class in the order of a directory listing that is lost.",
    "diabetic_retinopathy": "VTAB uses crops made by another team, which depend on their image library.",
    "dmlab": "it is distributed as TensorFlow records.",
}


def load_original(root: str | Path, task: str, split: str, *, subset: bool = False) -> LabelledImages:
    """Load one split of a task from the original data set, unpacked.

    Args:
        root: The folder of the data set. docs/data.md lists what it must contain.
        task: Any VTAB-1k task except caltech101, diabetic_retinopathy and dmlab.
        split: "train800", "val200", "train800val200" or "test".
        subset: dtd only: accept a folder with fewer classes or images, or without `labels/`. The split is then only
            VTAB-like: in hash order, the first 800 images for training, 200 for validation, the rest for testing.

    Raises:
        DataError: A file is missing, or the number of files is wrong.
        ImportError: oxford_flowers102 and svhn require scipy, patch_camelyon h5py.
    """
    check_split(split)
    folder = Path(root)
    if subset and task != "dtd":
        raise DataError(f"subset=True is for 'dtd' only, not for {task!r}. Leave it out.")
    if task in FILES:
        return _files(folder, task, split)
    if task in ARRAYS:
        return _arrays(folder, task, split)
    if task == "dtd":
        return _dtd(folder, split, subset)
    if task == "kitti":
        return _kitti(folder, split)
    find_task(task)
    raise DataError(f"{task!r} cannot be read from its original files: {UNREADABLE[task]} Use the 'vtab-1k' layout.")


def _pick(splits: Mapping[str, list[Key]], split: str) -> list[Key]:
    return splits["train800"] + splits["val200"] if split == "train800val200" else splits[split]


def _files(folder: Path, task: str, split: str) -> LabelledImages:
    spec, found = find_task(task), FILES[task](folder, task)
    names = _pick(split_keys(task, found.keys), split)
    paths = [found.path(name) for name in names]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise DataError(f"{absent[0]} is missing, and {len(absent) - 1} more of {split}.")
    return LabelledImages(
        ImageFiles(paths, upright=False),
        [found.label(name) for name in names],
        num_classes=spec.num_classes,
        class_names=found.class_names,
        provenance=Provenance(task, split, str(folder), None, True, _EXACT, len(names), spec.size_of(split)),
    )


def _arrays(folder: Path, task: str, split: str) -> LabelledImages:
    spec = find_task(task)
    pixels, labels, rows = [], [], []
    for part in ("train800", "val200") if split == "train800val200" else (split,):
        origin = {"train800": spec.train800, "val200": spec.val200, "test": spec.test}[part].split
        numbers = _row_numbers(task)[part]
        images, classes = ARRAYS[task](folder, task, origin, numbers, spec.sizes[origin])
        pixels.append(images)
        labels += classes
        rows += [f"{origin} row {number}" for number in numbers]
    return LabelledImages(
        PixelRows(np.concatenate(pixels), rows, str(folder)),
        labels,
        num_classes=spec.num_classes,
        provenance=Provenance(task, split, str(folder), None, True, _EXACT_ROWS, len(rows), spec.size_of(split)),
    )


@lru_cache(maxsize=2)
def _row_numbers(task: str) -> dict[str, list[int]]:
    """Return the rows of train800, val200 and test. Cached, since dSprites takes seconds."""
    spec = find_task(task)
    forms = spec.key_of_row or {}
    keys = {name: [forms[name].format(row) for row in range(size)] for name, size in spec.sizes.items()}
    cut = split_keys(task, keys)
    return {part: [int(re.findall(r"\d+", key)[0]) for key in names] for part, names in cut.items()}


def _dtd(folder: Path, split: str, subset: bool) -> LabelledImages:
    spec = find_task("dtd")
    found = sorted(path.relative_to(folder / "images").as_posix() for path in folder.glob("images/*/*.jpg"))
    classes = sorted({name.split("/")[0] for name in found})
    if len(classes) != spec.num_classes and not (subset and classes):
        raise DataError(f"{folder / 'images'} has {len(classes)} class folders with JPEGs, expected 47.")
    lists = {
        original: folder / "labels" / f"{name}1.txt"
        for original, name in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    exact = all(path.is_file() for path in lists.values()) and len(classes) == spec.num_classes
    if exact:
        splits = split_keys("dtd", {name: path.read_text(encoding="utf-8").split() for name, path in lists.items()})
        note = _EXACT
    elif subset:
        if len(found) <= 1000:
            raise DataError(f"{folder / 'images'} has {len(found)} JPEGs. train800 and val200 need more than 1000.")
        order = tfds_order(found, "train")
        splits = {"train800": order[:800], "val200": order[800:1000], "test": order[1000:]}
        note = f"{len(found)} images of {len(classes)} classes, split in hash order, without DTD's split-1 lists."
    else:
        raise DataError(f"{lists['train']}, val1.txt or test1.txt is missing. DTD is distributed with them.")
    names = _pick(splits, split)
    absent = set(names) - set(found)
    if absent:
        raise DataError(f"{folder / 'images' / min(absent)} is missing, and {len(absent) - 1} more of {split}.")
    provenance = Provenance("dtd", split, str(folder), None, exact, note, len(names), spec.size_of(split))
    return LabelledImages(
        ImageFiles([folder / "images" / name for name in names], upright=False),
        [classes.index(name.split("/")[0]) for name in names],
        num_classes=len(classes),
        class_names=classes,
        provenance=provenance,
    )


def kitti_label(folder: Path, image_name: str) -> int:
    """Return the class of one KITTI training image, such as "000123.png", from its label file."""
    file = folder / "training" / "label_2" / Path(image_name).with_suffix(".txt").name
    if not file.is_file():
        raise DataError(f"{file} is missing. KITTI's label archive has one file per training image.")
    try:
        return kitti_distance_of_text(file.read_text(encoding="utf-8"))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def kitti_video_splits(mapping: Path) -> dict[str, list[str]]:
    """Split KITTI's training images by video, as TFDS does.

    Args:
        mapping: The object devkit's folder `mapping`, with `train_mapping.txt` (date, drive and frame per line) and
            `train_rand.txt` (for each image, its 1-based line in the former).

    Returns:
        File names such as "000123.png", under "train", "validation" and "test".
    """
    for name in ("train_mapping.txt", "train_rand.txt"):
        if not (mapping / name).is_file():
            raise DataError(f"{mapping / name} is missing. It is in KITTI's object devkit (devkit_object.zip).")
    lines = (mapping / "train_mapping.txt").read_text(encoding="utf-8").splitlines()
    images: dict[str, list[str]] = defaultdict(list)
    for image, line in enumerate((mapping / "train_rand.txt").read_text(encoding="utf-8").split(",")):
        images[lines[int(line) - 1].split()[1]].append(f"{image:06d}.png")
    # TFDS used NumPy's legacy generator: a tenth of the videos for testing, another tenth for validation.
    draw = np.random.RandomState(123)
    videos = sorted(images)
    tenth = max(1, len(videos) // 10)
    test = set(draw.choice(videos, tenth, replace=False))
    validation = set(draw.choice([video for video in videos if video not in test], tenth, replace=False))
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for video in videos:
        name = "test" if video in test else "validation" if video in validation else "train"
        splits[name] += images[video]
    return splits


def _kitti(folder: Path, split: str) -> LabelledImages:
    spec = find_task("kitti")
    # `split_keys` checks the counts 6347, 423 and 711, which another sample or devkit would not match.
    names = _pick(split_keys("kitti", kitti_video_splits(folder / "mapping")), split)
    paths = [folder / "training" / "image_2" / name for name in names]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise DataError(f"{absent[0]} is missing, and {len(absent) - 1} more of {split}.")
    labels = [kitti_label(folder, name) for name in names]
    provenance = Provenance("kitti", split, str(folder), None, True, _EXACT, len(names), spec.size_of(split))
    return LabelledImages(
        ImageFiles(paths, upright=False), labels, num_classes=spec.num_classes, provenance=provenance
    )
