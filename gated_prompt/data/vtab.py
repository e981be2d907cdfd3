# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k: the 19 tasks, their exact splits without TensorFlow, and a loader for each common source.

    split_keys(task, keys)              select VTAB's examples by their original keys
    load_hub(task, split)               load from a Hub data set
    load_folder(root, task, split)      load from the community's "vtab-1k" folder layout
    load_original(root, task, split)    load from the original data set

Each loader returns `LabelledImages`. Its `provenance` says whether the images are exactly VTAB's.

The folder layout is that in which NOAH, SSF, RepAdapter and others distribute VTAB-1k:

    vtab-1k/<task>/<split>.txt                       lines "images/<split>/000000.jpg 12"
    vtab-1k/<task>/images/<split>/000000.jpg

The labels are VTAB's classes. All images were re-encoded as JPEG of quality 75, including originally lossless ones, so
their state is "lossy": on CIFAR-100, accuracies of about 70 % were reported where the original pixels give about 80 %.
"""

from pathlib import Path

from ..errors import DataError
from ..images import ImageFiles, InexactDataWarning, LabelledImages, Provenance
from .vtab_hub import load_hub
from .vtab_original import load_original
from .vtab_splits import split_keys, tfds_order
from .vtab_tasks import SPLITS, TASKS, VtabTask, check_split, find_task

__all__ = [
    "SPLITS",
    "TASKS",
    "InexactDataWarning",
    "LabelledImages",
    "Provenance",
    "VtabTask",
    "find_task",
    "load_folder",
    "load_hub",
    "load_original",
    "split_keys",
    "tfds_order",
]


def load_folder(root: str | Path, task: str, split: str, *, expected_count: int | None = None) -> LabelledImages:
    """Load one split of one task from the folder layout.

    Args:
        root: The folder that contains the task folders, or the one that contains `vtab-1k`.
        task: Task name.
        split: "train800", "val200", "train800val200" or "test".
        expected_count: Number of lines that the list should have. None means VTAB's. Since reduced copies are useful
            too, any other number only causes a warning, and the provenance is marked as inexact.

    Warns:
        InexactDataWarning: The list has another number of images, or they are JPEGs, which are lossy.

    Raises:
        DataError: The folder, the list or an image is missing, or a line is malformed. The message names it.
    """
    spec = find_task(task)
    check_split(split)
    folder = _task_folder(Path(root), task)
    list_file = folder / f"{split}.txt"
    if not list_file.is_file():
        raise DataError(f"{list_file} is missing: each task folder contains {split}.txt and images/{split}/.")
    names, labels = _read_list(list_file)
    paths = [folder / name for name in names]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise DataError(f"{list_file} lists {len(absent)} missing image(s). The first is {absent[0]}.")
    vtab_count = spec.size_of(split)
    complete = len(paths) == vtab_count and expected_count in (None, vtab_count)
    lossy = complete and any(path.suffix.lower() in (".jpg", ".jpeg") for path in paths)
    if lossy:
        note = "VTAB's own images, encoded again as JPEG of quality 75. Results differ from those of the originals."
    elif complete:
        note = "VTAB's own images by the folder's lists, not encoded with loss."
    else:
        note = f"{list_file.name} lists {len(paths)} images, expected {expected_count or vtab_count}."
    provenance = Provenance(
        task,
        split,
        str(folder),
        None,
        complete and not lossy,
        note,
        len(paths),
        vtab_count if expected_count is None else expected_count,
        lossy,
    )
    return LabelledImages(
        ImageFiles(paths, upright=False), labels, num_classes=spec.num_classes, provenance=provenance
    )


def _task_folder(root: Path, task: str) -> Path:
    candidates = [root / task, root / "vtab-1k" / task]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(f"Neither {candidates[0]} nor {candidates[1]} is a folder. Expected the 'vtab-1k' layout there.")


def _read_list(list_file: Path) -> tuple[list[str], list[int]]:
    names, labels = [], []
    for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise DataError(f"{list_file}, line {number}: expected 'images/.../000000.jpg 12', found {line!r}.")
        names.append(name)
        labels.append(int(label))
    return names, labels
