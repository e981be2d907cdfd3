# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read the parts of the data that the arguments name, from folders, COCO or the Hub, and hold back images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...data.ade20k import read_names as ade_names
from ...errors import DataError
from ...images import EXTENSIONS
from ..folder import walk
from ..image_set import Picture
from ..layout import find_mask_folders
from ..sources import hub_splits, read_stored
from .arguments import MaskArguments
from .class_table import ClassTable, from_names, from_palette, read_names
from .mask_files import is_lossy, read_coco, read_mask
from .mask_set import LabelMap, MaskSet, Unchecked, check, refuse_empty_classes, together

CLASSES = "classes.txt"


def read_mask_folder(images: Path, masks: Path, table: ClassTable | None) -> Unchecked:
    """The pairs of two folders. A mask has the path of its image below the folder, whatever its ending.

    Raises:
        DataError: one of the folders is missing, or nothing in it has a partner.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}. Images and masks lie in two folders side by side.")
    pictures, maps = _files(images), _files(masks)
    names = sorted(pictures.keys() & maps.keys())
    skipped = {str(pictures[name]): f"has no mask in {masks}" for name in sorted(pictures.keys() - maps.keys())}
    skipped |= {str(maps[name]): f"has no image in {images}" for name in sorted(maps.keys() - pictures.keys())}
    if not names:
        raise DataError(
            f"no image of {images} has a mask of its name in {masks} ({len(pictures)} images, {len(maps)} masks). "
            "images/001.jpg goes with masks/001.png"
        )
    by_colour = table is not None and table.colours is not None
    return Unchecked(
        [Picture(name, partial(Path, pictures[name])) for name in names],
        [
            LabelMap(
                name, partial(read_mask, maps[name], str(maps[name]), by_colour), partial(is_lossy, maps[name], name)
            )
            for name in names
        ],
        table,
        str(images),
        skipped,
    )


def table_for(folder: Path | None, classes: str | None, palette: str | None) -> ClassTable | None:
    """The classes as --palette, --classes or a file in the folder or above it names them. None if nothing does."""
    if palette is not None:
        return from_palette(Path(palette))
    if classes is not None:
        return from_names(read_names(Path(classes)))
    for place in (folder, folder.parent) if folder is not None else ():
        if (place / CLASSES).is_file():
            return from_names(read_names(place / CLASSES))
    names = ade_names(folder) if folder is not None else None
    return from_names(names, first=1) if names is not None else None


def _files(folder: Path) -> dict[str, Path]:
    """Image files at any depth by their path without the ending.

    Raises:
        DataError: two differ in their ending only.
    """
    found: dict[str, Path] = {}
    for file in walk(folder):
        if file.suffix.lower() not in EXTENSIONS:
            continue
        key = str(file.relative_to(folder).with_suffix(""))
        if key in found:
            raise DataError(
                f"{found[key]} and {file} have the same name, so their masks cannot be distinguished. Rename one."
            )
        found[key] = file
    return found


def read_mask_split(
    rows: Any, image_column: str, label_column: str, table: ClassTable | None, source: str
) -> Unchecked:
    """One split.

    Raises:
        DataError: a column is missing or holds no images.
    """
    from datasets import Image

    for option, column in (("--image_column", image_column), ("--label_column", label_column)):
        if column not in rows.column_names:
            raise DataError(
                f"{source} has no column {column!r}. It has {', '.join(rows.column_names)}. Give {option}."
            )
        if not isinstance(rows.features[column], Image):
            raise DataError(f"the column {column!r} of {source} holds no images. Give another {option}.")
    stored = rows.cast_column(image_column, Image(decode=False)).cast_column(label_column, Image(decode=False))
    by_colour = table is not None and table.colours is not None
    names = [f"{source} {index}" for index in range(len(rows))]
    return Unchecked(
        [Picture(name, partial(read_stored, stored, index, image_column)) for index, name in enumerate(names)],
        [
            LabelMap(
                name,
                partial(_mask, stored, index, label_column, name, by_colour),
                partial(_is_lossy, stored, index, label_column, name),
            )
            for index, name in enumerate(names)
        ],
        table,
        source,
    )


def _mask(rows: Any, index: int, column: str, name: str, by_colour: bool) -> np.ndarray:
    return read_mask(read_stored(rows, index, column), name, by_colour)


def _is_lossy(rows: Any, index: int, column: str, name: str) -> bool:
    return is_lossy(read_stored(rows, index, column), name)


Split = tuple[list[int], list[int]]  # images to fit to, images to score
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class MaskParts:
    """The images and how they are divided.

    Attributes:
        labelled: all that may be learned from.
        splits: indices to fit to and to score, for choices. Trained methods see the first one alone. There is one
            where the user gave a validation part, else five folds.
        test: images, if any, that are scored at the end.
        keys: fingerprints of "labelled" and "test".
    """

    labelled: MaskSet
    splits: list[Split]
    test: MaskSet | None
    keys: dict[str, str]

    @property
    def train(self) -> MaskSet:
        return self.labelled.take(self.splits[0][0])

    @property
    def validation(self) -> MaskSet:
        return self.labelled.take(self.splits[0][1])


def read_mask_parts(args: MaskArguments, show: bool) -> MaskParts:
    """Read, check and divide the images. `show` a progress bar.

    Raises:
        DataError: the data are not what they should be.
    """
    found = _found(args)
    train, key = check(found["train"], args.ignore_label, show)
    keys, others = {"labelled": key}, dict[str, MaskSet]()
    for part in PARTS[1:]:
        if part in found:
            others[part], keys[part] = check(found[part], args.ignore_label, show, train.table)
    refuse_empty_classes(train)
    if "validation" not in others:
        splits = folds(train, args.validation_share, args.split_seed)
        return MaskParts(train, splits, others.get("test"), keys)
    keys["labelled"] += keys.pop("validation")
    both = together(train, others["validation"])
    split = list(range(len(train))), list(range(len(train), len(both)))
    return MaskParts(both, [split], others.get("test"), keys)


def folds(data: MaskSet, share: float, seed: int) -> list[Split]:
    """Parts of about this share of the images, each held back once. Of the first no class loses its last image.

    Raises:
        DataError: the share is not between 0 and 1, or nothing can be held back.
    """
    kept, held = hold_back_masks(data, share, seed)
    others = np.array_split(np.random.default_rng(seed).permutation(kept), max(1, round(1 / share) - 1))
    parts = [held, *(sorted(part.tolist()) for part in others if len(part))]
    return [(sorted(set(range(len(data))) - set(part)), part) for part in parts]


def hold_back_masks(data: MaskSet, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold back, at random, but no class loses its last image.

    Raises:
        DataError: the share is not between 0 and 1, or nothing can be held back.
    """
    if not 0 < share < 1:
        raise DataError(f"--validation_share is {share}. Expected a number between 0 and 1.")
    wanted = max(1, round(share * len(data)))
    left = (data.counts > 0).sum(0)
    held: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(data)).tolist():
        shown = data.counts[index] > 0
        if len(held) < wanted and bool((left[shown] > 1).all()):
            held.append(index)
            left = left - shown.long()
    if not held or len(held) == len(data):
        raise DataError(
            f"none of the {len(data)} images of {data.source} can be held back for validation: each is the only one "
            "of a class. Label more images, or give --validation_dir."
        )
    return sorted(set(range(len(data))) - set(held)), sorted(held)


def _found(args: MaskArguments) -> dict[str, Unchecked]:
    if args.train_file is not None:
        files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        folder = Path(args.train_dir) if args.train_dir is not None else None
        return {part: read_coco(Path(file), folder) for part, file in files.items() if file is not None}
    if args.dataset is not None:
        table = table_for(None, args.classes, args.palette)
        columns = args.image_column, args.label_column
        return {
            part: read_mask_split(rows, *columns, table, source) for part, (rows, source) in hub_splits(args).items()
        }
    root = Path(args.train_dir or "")
    folders = find_mask_folders(root)
    if not folders:
        raise DataError(
            f"--train_dir {str(root)!r} has no images/ with masks/ or annotations/ beside it. --problem segmentation "
            "needs both, with a mask of the same name for each image."
        )
    for part, own in (("validation", args.validation_dir), ("test", args.test_dir)):
        if own is not None:
            inside = find_mask_folders(Path(own))
            if not inside:
                raise DataError(f"--{part}_dir {own!r} has no images/ with masks/ or annotations/ beside it")
            folders[part] = inside["train"]
    table = table_for(root, args.classes, args.palette)
    return {part: read_mask_folder(*pair, table) for part, pair in folders.items()}
