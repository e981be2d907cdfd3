# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k tasks from the data sets' own archives, as unpacked: dtd and kitti."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import DataError
from .images import ImageFiles, LabelledImages, Provenance
from .vtab_labels import kitti_distance_of_text
from .vtab_splits import split_keys, tfds_order
from .vtab_tasks import check_split, find_task

_EXACT = "VTAB's own images, found by their original file names."


def load_original(root: str | Path, task: str, split: str, *, subset: bool = False) -> LabelledImages:
    """One split of a task from the data set's original layout.

    Args:
        root: dtd: the folder with `images/<class>/` and `labels/{train1,val1,test1}.txt`. kitti: the folder with
            `training/image_2`, `training/label_2` and the object devkit's `mapping/`.
        task: "dtd" or "kitti".
        split: "train800", "val200", "train800val200" or "test".
        subset: dtd only: accept a folder with fewer classes or images, or without `labels/`. The split is then only
            like VTAB's: the first 800 images in hash order train, the next 200 validate, the rest test.

    Raises:
        DataError: Files are missing, or are not as many as the data set has.
    """
    check_split(split)
    folder = Path(root)
    if task == "dtd":
        return _dtd(folder, split, subset)
    if task == "kitti" and not subset:
        return _kitti(folder, split)
    find_task(task)
    raise DataError(f"{task!r} has no loader of this kind; load_original reads 'dtd' (also subset=True) and 'kitti'.")


def _pick(splits: Mapping[str, list[str]], split: str) -> list[str]:
    return splits["train800"] + splits["val200"] if split == "train800val200" else splits[split]


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
            raise DataError(f"{folder / 'images'} has {len(found)} JPEGs; train800 and val200 need more than 1000.")
        order = tfds_order(found, "train")
        splits = {"train800": order[:800], "val200": order[800:1000], "test": order[1000:]}
        note = f"{len(found)} images of {len(classes)} classes split by hash order, without DTD's split-1 lists."
    else:
        raise DataError(f"{lists['train']} and its siblings val1.txt and test1.txt are missing; they ship with DTD.")
    names = _pick(splits, split)
    absent = set(names) - set(found)
    if absent:
        raise DataError(f"{folder / 'images' / min(absent)} is missing, with {len(absent) - 1} more of {split}.")
    provenance = Provenance("dtd", split, str(folder), None, exact, note, len(names), spec.size_of(split))
    return LabelledImages(
        ImageFiles([folder / "images" / name for name in names]),
        [classes.index(name.split("/")[0]) for name in names],
        num_classes=len(classes),
        class_names=classes,
        provenance=provenance,
    )


def kitti_label(folder: Path, image_name: str) -> int:
    """Class of one KITTI training image, such as "000123.png", from its label file."""
    file = folder / "training" / "label_2" / Path(image_name).with_suffix(".txt").name
    if not file.is_file():
        raise DataError(f"{file} is missing; KITTI's label archive has one file per training image.")
    try:
        return kitti_distance_of_text(file.read_text(encoding="utf-8"))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def kitti_video_splits(mapping: Path) -> dict[str, list[str]]:
    """KITTI's training images split by video, as TFDS does it.

    Args:
        mapping: The object devkit's folder `mapping`, with `train_mapping.txt` (date, drive and frame per line) and
            `train_rand.txt` (for each image the 1-based line it comes from).

    Returns:
        "train", "validation" and "test" -> file names such as "000123.png".
    """
    for name in ("train_mapping.txt", "train_rand.txt"):
        if not (mapping / name).is_file():
            raise DataError(f"{mapping / name} is missing. It is in KITTI's object devkit (devkit_object.zip).")
    lines = (mapping / "train_mapping.txt").read_text(encoding="utf-8").splitlines()
    images: dict[str, list[str]] = defaultdict(list)
    for image, line in enumerate((mapping / "train_rand.txt").read_text(encoding="utf-8").split(",")):
        images[lines[int(line) - 1].split()[1]].append(f"{image:06d}.png")
    # The legacy generator, since its draws are what TFDS drew: a tenth of the videos tests, a tenth validates.
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
    # `split_keys` checks 6347 + 423 + 711: with another draw or another devkit the counts cannot all match.
    names = _pick(split_keys("kitti", kitti_video_splits(folder / "mapping")), split)
    paths = [folder / "training" / "image_2" / name for name in names]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise DataError(f"{absent[0]} is missing, with {len(absent) - 1} more of {split}.")
    labels = [kitti_label(folder, name) for name in names]
    provenance = Provenance("kitti", split, str(folder), None, True, _EXACT, len(names), spec.size_of(split))
    return LabelledImages(ImageFiles(paths), labels, num_classes=spec.num_classes, provenance=provenance)
