# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Reconstruct VTAB-1k's exact splits from the keys of the examples alone.

TFDS sorts a split by the md5 hash of the split name followed by the example key, and VTAB slices that order. The keys
therefore suffice. Neither TensorFlow nor a TFDS download is needed.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..errors import DataError
from .vtab_tasks import Slice, VtabTask, find_task

Key = TypeVar("Key", str, int)

_ORIGINAL_SPLITS = frozenset({"train", "validation", "test", "extra"})
_CALTECH_PER_CLASS = 30


def tfds_order(keys: Iterable[Key], split: str) -> list[Key]:
    """Sort the keys of a whole split in the order in which TFDS stores them.

    Args:
        keys: Keys of all examples of the split, in any order.
        split: Original split name, "train", "validation" or "test", which is part of the hash.
    """
    return sorted(keys, key=lambda key: hashlib.md5(f"{split}{key}".encode(), usedforsecurity=False).digest())


def split_keys(task: str, keys: Mapping[str, Iterable[Key]]) -> dict[str, list[Key]]:
    """Select the keys of VTAB-1k's train800, val200 and test, each in VTAB's order.

    Args:
        task: Name of one of the 19 tasks, such as "cifar" or "clevr_dist".
        keys: Original split name ("train", "validation", "test") -> TFDS keys of ALL its examples, in any order.
            eurosat, resisc45 and dsprites have one original split, "train". Splits that VTAB does not use are
            ignored. Row numbers may be int or str and are returned unchanged.

    Returns:
        800 keys under "train800", 200 under "val200" and `TASKS[task].test_size` under "test".

    Raises:
        DataError: The task or a split is unknown, a split is missing, or its keys are too few, too many, duplicated or
            not in TFDS's form. For caltech101 also: the lists are not TFDS's own.
    """
    spec = find_task(task)
    unknown = sorted(set(keys) - _ORIGINAL_SPLITS)
    missing = [name for name in spec.sizes if name not in keys]
    if unknown or missing:
        fault = f"unknown split {unknown[0]!r}" if unknown else f"split {missing[0]!r} is missing"
        raise DataError(f"{task}: {fault}. Expected {_expected_splits(spec)}.{_caltech_advice(spec)}")
    lists = {name: list(keys[name]) for name in spec.sizes}
    for name, split in lists.items():
        _check_keys(spec, name, split)
    _check_disjoint(spec, lists)
    ordered = {name: tfds_order(split, name) for name, split in lists.items()}

    def cut(part: Slice) -> list[Key]:
        return ordered[part.split][part.start : part.stop]

    return {"train800": cut(spec.train800), "val200": cut(spec.val200), "test": cut(spec.test)}


def _expected_splits(spec: VtabTask) -> str:
    return " and ".join(f"{name!r} ({size} keys)" for name, size in spec.sizes.items())


def _caltech_advice(spec: VtabTask) -> str:
    if spec.name != "caltech101":
        return ""
    return (
        " caltech101 cannot be reconstructed from file names alone: its split draws 30 images per class in the order"
        " of a directory listing that is lost. Use the 'vtab-1k' folder layout, or give the exact key lists of a TFDS"
        " export of caltech101 3.0.1 ('train' with 3059 and 'test' with 6085 keys)."
    )


def _check_keys(spec: VtabTask, split: str, keys: list[Key]) -> None:
    size = spec.sizes[split]
    if len(keys) != size:
        raise DataError(
            f"{spec.name}: split {split!r} has {len(keys)} keys, expected all {size} of the original split, since one"
            f" missing key shifts every slice.{_caltech_advice(spec)}"
        )
    names = [str(key) for key in keys]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{spec.name}: split {split!r} contains {repeated[0]!r} twice. Keys must be unique.")
    if spec.key_of_row is not None:
        form = spec.key_of_row[split]
        wrong = next(iter(set(names) - {form.format(row) for row in range(size)}), None)
        expected = f"{form.format(0)!r} to {form.format(size - 1)!r}"
    else:
        pattern = re.compile(spec.key_pattern or "")
        wrong = next((name for name in names if not pattern.fullmatch(name)), None)
        expected = f"the form of {spec.key_example!r}"
    if wrong is not None:
        raise DataError(
            f"{spec.name}: split {split!r} contains the key {wrong!r}, expected {expected}. Any other spelling changes"
            " the hash order."
        )


def _check_disjoint(spec: VtabTask, lists: Mapping[str, list[Key]]) -> None:
    if spec.key_of_row is not None:  # row numbers start at 0 in every split
        return
    seen: dict[str, str] = {}
    for split, keys in lists.items():
        for name in map(str, keys):
            if name in seen:
                raise DataError(f"{spec.name}: {name!r} is in {seen[name]!r} and {split!r}. Splits must be disjoint.")
            seen[name] = split
    if spec.name == "caltech101":
        folder, count = Counter(str(key).split("/")[0] for key in lists["train"]).most_common(1)[0]
        if count > _CALTECH_PER_CLASS:
            raise DataError(
                f"caltech101: 'train' has {count} images of {folder!r}, but TFDS draws {_CALTECH_PER_CLASS} per class,"
                f" so this is not its list.{_caltech_advice(spec)}"
            )
