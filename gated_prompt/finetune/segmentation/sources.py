# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read the parts of the data that the arguments name, and hold back images for validation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..layout import find_mask_folders
from ..sources import hub_parts
from .arguments import MaskArguments
from .coco import read_coco
from .mask_folder import read_mask_folder, table_for
from .mask_hub import read_mask_split
from .mask_set import MaskSet, Unchecked, check, refuse_empty_classes, together

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
        raise DataError(f"--validation_share is {share}; a part between 0 and 1 is needed")
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
            "of a class; label more images, or give --validation_dir"
        )
    return sorted(set(range(len(data))) - set(held)), sorted(held)


def _found(args: MaskArguments) -> dict[str, Unchecked]:
    if args.train_file is not None:
        files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        folder = Path(args.train_dir) if args.train_dir is not None else None
        return {part: read_coco(Path(file), folder) for part, file in files.items() if file is not None}
    if args.dataset is not None:
        table = table_for(None, args.classes, args.palette)
        data = hub_parts(args.dataset, args.dataset_revision)
        splits = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
        asked = {part: split for part, split in splits.items() if split is not None}
        missing = [split for split in asked.values() if split not in data]
        if missing:
            raise DataError(f"{args.dataset} has no split {missing[0]!r}; it has: {', '.join(data)}")
        return {
            part: read_mask_split(data[split], args.image_column, args.label_column, table, f"{args.dataset} {split}")
            for part, split in asked.items()
        }
    root = Path(args.train_dir or "")
    folders = find_mask_folders(root)
    if not folders:
        raise DataError(
            f"--train_dir {str(root)!r} has no images/ with masks/ or annotations/ beside it; --problem segmentation "
            "needs both, with a mask of the same name for each image"
        )
    for part, own in (("validation", args.validation_dir), ("test", args.test_dir)):
        if own is not None:
            inside = find_mask_folders(Path(own))
            if not inside:
                raise DataError(f"--{part}_dir {own!r} has no images/ with masks/ or annotations/ beside it")
            folders[part] = inside["train"]
    table = table_for(root, args.classes, args.palette)
    return {part: read_mask_folder(*pair, table) for part, pair in folders.items()}
