# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The 19 VTAB-1k tasks as a table: classes, original split sizes, and which slices make train800, val200 and test.

VTAB (Zhai et al., https://arxiv.org/abs/1910.04867) takes its 1000 training images by slicing the TensorFlow
Datasets (TFDS) splits. `vtab_splits` turns this table into lists of examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import DataError

SPLITS = ("train800", "val200", "train800val200", "test")


@dataclass(frozen=True)
class Slice:
    """`split[start:stop]` in TFDS order; `stop=None` means to the end."""

    split: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class VtabTask:
    """One task.

    Attributes:
        name: Folder name of the task in the "vtab-1k" layout.
        group: "natural", "specialized" or "structured"; VTAB averages per group.
        num_classes: Number of classes of the task, which a small split may not show in full.
        sizes: Original split name -> number of its examples, for the splits that VTAB uses.
        train800, val200, test: Where VTAB takes them from.
        key_pattern: Regular expression that every TFDS key matches; None where `key_of_row` says more.
        key_of_row: Original split name -> format string that makes the key of row i, where the keys are plain row
            numbers in some dress. Then the whole set of keys is known and checked.
        key_example: One key, for messages.
    """

    name: str
    group: str
    num_classes: int
    sizes: Mapping[str, int]
    train800: Slice
    val200: Slice
    test: Slice
    key_example: str
    key_pattern: str | None = None
    key_of_row: Mapping[str, str] | None = None

    @property
    def test_size(self) -> int:
        """Number of test examples."""
        stop = self.sizes[self.test.split] if self.test.stop is None else self.test.stop
        return stop - self.test.start

    def size_of(self, split: str) -> int:
        """Number of examples of a VTAB split."""
        return {"train800": 800, "val200": 200, "train800val200": 1000, "test": self.test_size}[split]


_TRAIN = Slice("train", 0, 800)
_VALIDATION = Slice("validation", 0, 200)


def _val_at(start: int) -> Slice:
    return Slice("train", start, start + 200)


def _clevr(name: str, num_classes: int) -> VtabTask:
    # The original test images have no labels, so VTAB tests on the original validation split.
    return VtabTask(
        name,
        "structured",
        num_classes,
        {"train": 70000, "validation": 15000},
        _TRAIN,
        _val_at(63000),
        Slice("validation"),
        key_example="CLEVR_train_000000.png",
        key_of_row={"train": "CLEVR_train_{:06d}.png", "validation": "CLEVR_val_{:06d}.png"},
    )


def _dsprites(name: str) -> VtabTask:
    return VtabTask(
        name,
        "structured",
        16,
        {"train": 737280},
        _TRAIN,
        _val_at(589824),
        Slice("train", 663552),
        key_example="0",
        key_of_row={"train": "{}"},
    )


def _smallnorb(name: str, num_classes: int) -> VtabTask:
    # The validation images come from the original test split: its first half validates, its second half tests.
    return VtabTask(
        name,
        "structured",
        num_classes,
        {"train": 24300, "test": 24300},
        _TRAIN,
        Slice("test", 0, 200),
        Slice("test", 12150),
        key_example="0",
        key_of_row={"train": "{}", "test": "{}"},
    )


_ALL = (
    VtabTask(
        "caltech101",
        "natural",
        102,
        {"train": 3059, "test": 6085},
        _TRAIN,
        _val_at(2753),
        Slice("test"),
        key_example="accordion/image_0001.jpg",
        key_pattern=r"[^/]+/[^/]+\.jpg",
    ),
    VtabTask(
        "cifar",
        "natural",
        100,
        {"train": 50000, "test": 10000},
        _TRAIN,
        _val_at(45000),
        Slice("test"),
        key_example="35605",
        key_of_row={"train": "{}", "test": "{}"},
    ),
    VtabTask(
        "dtd",
        "natural",
        47,
        {"train": 1880, "validation": 1880, "test": 1880},
        _TRAIN,
        _VALIDATION,
        Slice("test"),
        key_example="banded/banded_0002.jpg",
        key_pattern=r"[^/]+/[^/]+\.jpg",
    ),
    VtabTask(
        "oxford_flowers102",
        "natural",
        102,
        {"train": 1020, "validation": 1020, "test": 6149},
        _TRAIN,
        _VALIDATION,
        Slice("test"),
        key_example="image_00607.jpg",
        key_pattern=r"image_\d{5}\.jpg",
    ),
    VtabTask(
        "oxford_iiit_pet",
        "natural",
        37,
        {"train": 3680, "test": 3669},
        _TRAIN,
        _val_at(3312),
        Slice("test"),
        key_example="Abyssinian_100.jpg",
        key_pattern=r"[^/]+_\d+\.jpg",
    ),
    VtabTask(
        "svhn",
        "natural",
        10,
        {"train": 73257, "test": 26032},
        _TRAIN,
        _val_at(65931),
        Slice("test"),
        key_example="0",
        key_of_row={"train": "{}", "test": "{}"},
    ),
    VtabTask(
        "sun397",
        "natural",
        397,
        {"train": 76128, "validation": 10875, "test": 21750},
        _TRAIN,
        _VALIDATION,
        Slice("test"),
        key_example="/a/abbey/sun_aaalbzqrimafwbiv.jpg",
        key_pattern=r"/.+\.jpg",
    ),
    VtabTask(
        "patch_camelyon",
        "specialized",
        2,
        {"train": 262144, "validation": 32768, "test": 32768},
        _TRAIN,
        _VALIDATION,
        Slice("test"),
        key_example="train_206220",
        key_of_row={"train": "train_{}", "validation": "valid_{}", "test": "test_{}"},
    ),
    VtabTask(
        "eurosat",
        "specialized",
        10,
        {"train": 27000},
        _TRAIN,
        _val_at(16200),
        Slice("train", 21600),
        key_example="AnnualCrop_AnnualCrop_1.jpg",
        key_pattern=r"(.+)_\1_\d+\.jpg",
    ),
    VtabTask(
        "resisc45",
        "specialized",
        45,
        {"train": 31500},
        _TRAIN,
        _val_at(18900),
        Slice("train", 25200),
        key_example="airplane_airplane_001.jpg",
        key_pattern=r"(.+)_\1_\d+\.jpg",
    ),
    VtabTask(
        "diabetic_retinopathy",
        "specialized",
        5,
        {"train": 35126, "validation": 10906, "test": 42670},
        _TRAIN,
        _VALIDATION,
        Slice("test"),
        key_example="24261_left",
        key_pattern=r"\d+_(left|right)",
    ),
    _clevr("clevr_count", 8),
    _clevr("clevr_dist", 6),
    VtabTask(
        "dmlab",
        "structured",
        6,
        {"train": 65550, "validation": 22628, "test": 22735},
        _TRAIN,
        _VALIDATION,
        Slice("test"),
        key_example="video_600_5_976.jpg",
        key_pattern=r"[^/]+\.jpg",
    ),
    VtabTask(
        "kitti",
        "structured",
        4,
        {"train": 6347, "validation": 423, "test": 711},
        _TRAIN,
        _VALIDATION,
        Slice("test"),
        key_example="000123.png",
        key_pattern=r"\d{6}\.png",
    ),
    _dsprites("dsprites_loc"),
    _dsprites("dsprites_ori"),
    _smallnorb("smallnorb_azi", 18),
    _smallnorb("smallnorb_ele", 9),
)

TASKS: Mapping[str, VtabTask] = {task.name: task for task in _ALL}


def find_task(name: str) -> VtabTask:
    """The task of that name.

    Raises:
        DataError: There is no such task; the message lists the names.
    """
    if name not in TASKS:
        raise DataError(f"{name!r} is not a VTAB-1k task. The tasks are: {', '.join(TASKS)}.")
    return TASKS[name]


def check_split(split: str) -> None:
    """Raises:
    DataError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise DataError(f"{split!r} is not a VTAB-1k split. The splits are: {', '.join(SPLITS)}.")
