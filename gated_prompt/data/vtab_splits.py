# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k's exact images, rebuilt from the keys of the examples alone.

TFDS stores a split sorted by the md5 hash of the split's name followed by the example's key, and VTAB slices that
order. So the keys are enough: neither TensorFlow nor a TFDS download is needed.
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
    """Sorts the keys of a whole split as TFDS stores them.

    Args:
        keys: Keys of all examples of the split, in any order.
        split: Original split name: "train", "validation" or "test". It salts the hash.
    """
    return sorted(keys, key=lambda key: hashlib.md5(f"{split}{key}".encode(), usedforsecurity=False).digest())


def split_keys(task: str, keys: Mapping[str, Iterable[Key]]) -> dict[str, list[Key]]:
    """The keys of VTAB-1k's train800, val200 and test, each in the order that VTAB uses.

    Args:
        task: Name of one of the 19 tasks, such as "cifar" or "clevr_dist".
        keys: Original split name ("train", "validation", "test") -> TFDS keys of ALL its examples, in any order.
            eurosat, resisc45 and dsprites have one original split, "train". Splits that VTAB does not use are
            ignored. Row numbers may be int or str; they come back as they were given.

    Returns:
        "train800", "val200" and "test", with 800, 200 and `TASKS[task].test_size` keys.

    Raises:
        DataError: The task is unknown; a split is missing or its name unknown; a split has the wrong number of keys,
            duplicates, or keys of another form than TFDS's. For caltech101 also: the lists cannot be TFDS's own.
    """
    spec = find_task(task)
    unknown = sorted(set(keys) - _ORIGINAL_SPLITS)
    missing = [name for name in spec.sizes if name not in keys]
    if unknown or missing:
        fault = f"no split {unknown[0]!r} is known" if unknown else f"split {missing[0]!r} is missing"
        raise DataError(f"{task}: {fault}; expected {_expected_splits(spec)}.{_caltech_advice(spec)}")
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
        " caltech101 cannot be rebuilt from file names alone: its split draws 30 images per class in the order in"
        " which a directory was once listed. Use the 'vtab-1k' folder layout, or give the exact key lists of a TFDS"
        " export of caltech101 3.0.1 ('train' with 3059 and 'test' with 6085 keys), which are sufficient."
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
        raise DataError(f"{spec.name}: split {split!r} holds {repeated[0]!r} twice; keys must be unique.")
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
            f"{spec.name}: split {split!r} holds the key {wrong!r}, expected {expected}. Any other spelling hashes to"
            " another order."
        )


def _check_disjoint(spec: VtabTask, lists: Mapping[str, list[Key]]) -> None:
    if spec.key_of_row is not None:  # row numbers start at 0 in every split
        return
    seen: dict[str, str] = {}
    for split, keys in lists.items():
        for name in map(str, keys):
            if name in seen:
                raise DataError(f"{spec.name}: {name!r} is in {seen[name]!r} and in {split!r}; splits are disjoint.")
            seen[name] = split
    if spec.name == "caltech101":
        folder, count = Counter(str(key).split("/")[0] for key in lists["train"]).most_common(1)[0]
        if count > _CALTECH_PER_CLASS:
            raise DataError(
                f"caltech101: 'train' has {count} images of {folder!r}, but TFDS draws {_CALTECH_PER_CLASS} per class,"
                f" so this is not its list.{_caltech_advice(spec)}"
            )
