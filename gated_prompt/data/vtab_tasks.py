# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The 19 VTAB-1k tasks as a table: classes, original split sizes, and the slices for train800, val200 and test.

VTAB (Zhai et al., https://arxiv.org/abs/1910.04867) takes its 1000 training images by slicing the TensorFlow
Datasets (TFDS) splits. `vtab_splits` turns this table into lists of examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..errors import DataError

SPLITS = ("train800", "val200", "train800val200", "test")


@dataclass(frozen=True)
class Slice:
    """`split[start:stop]` in TFDS order. `stop=None` means to the end."""

    split: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class VtabTask:
    """One VTAB-1k task.

    Attributes:
        name: Folder name of the task in the "vtab-1k" layout.
        group: "natural", "specialized" or "structured". VTAB averages per group.
        num_classes: Number of classes of the task. A small split may not contain all of them.
        sizes: Original split name -> number of its examples, for the splits that VTAB uses.
        val200, test: Slices that VTAB takes. train800 is always the beginning of "train".
        key_example: One key, for error messages.
        key_pattern: Regular expression that every TFDS key matches. None if `key_of_row` is set.
        key_of_row: Original split name -> format string that turns a row number into its key, if keys are formatted
            row numbers. The whole set of keys is then known and checked.
    """

    name: str
    group: str
    num_classes: int
    sizes: Mapping[str, int]
    val200: Slice
    test: Slice
    key_example: str
    key_pattern: str | None = None
    key_of_row: Mapping[str, str] | None = None

    train800: ClassVar[Slice] = Slice("train", 0, 800)

    @property
    def test_size(self) -> int:
        """The number of test examples."""
        stop = self.sizes[self.test.split] if self.test.stop is None else self.test.stop
        return stop - self.test.start

    def size_of(self, split: str) -> int:
        """Return the number of examples in a VTAB split."""
        return {"train800": 800, "val200": 200, "train800val200": 1000, "test": self.test_size}[split]


_VALIDATION = Slice("validation", 0, 200)
_TEST = Slice("test")
_FOLDER_AND_FILE = r"[^/]+/[^/]+\.jpg"
_CLASS_AND_FILE = r"(.+)_\1_\d+\.jpg"


def _train_from(start: int) -> Slice:
    return Slice("train", start, start + 200)


def _named(
    name: str,
    group: str,
    num_classes: int,
    sizes: Mapping[str, int],
    example: str,
    *,
    pattern: str,
    val: Slice = _VALIDATION,
    test: Slice = _TEST,
) -> VtabTask:
    """Define a task whose keys are file names or similar strings."""
    return VtabTask(name, group, num_classes, sizes, val, test, example, key_pattern=pattern)


def _numbered(
    name: str,
    group: str,
    num_classes: int,
    sizes: Mapping[str, int],
    rows: Mapping[str, str],
    *,
    val: Slice = _VALIDATION,
    test: Slice = _TEST,
) -> VtabTask:
    """Define a task whose keys are formatted row numbers."""
    return VtabTask(name, group, num_classes, sizes, val, test, rows["train"].format(0), key_of_row=rows)


_CIFAR = {"train": 50000, "test": 10000}
_DTD = {"train": 1880, "validation": 1880, "test": 1880}
_FLOWERS = {"train": 1020, "validation": 1020, "test": 6149}
_SUN = {"train": 76128, "validation": 10875, "test": 21750}
_PCAM = {"train": 262144, "validation": 32768, "test": 32768}
_PCAM_ROWS = {"train": "train_{}", "validation": "valid_{}", "test": "test_{}"}
_RETINA = {"train": 35126, "validation": 10906, "test": 42670}
_CLEVR = {"train": 70000, "validation": 15000}
_CLEVR_ROWS = {"train": "CLEVR_train_{:06d}.png", "validation": "CLEVR_val_{:06d}.png"}
_DMLAB = {"train": 65550, "validation": 22628, "test": 22735}
_KITTI = {"train": 6347, "validation": 423, "test": 711}
_NORB = {"train": 24300, "test": 24300}
_ROWS = {"train": "{}", "test": "{}"}

# The original test scenes have no labels, so VTAB tests on the original validation split.
_CLEVR_CUT = {"val": _train_from(63000), "test": Slice("validation")}
_DSPRITES_CUT = {"val": _train_from(589824), "test": Slice("train", 663552)}
# Both come from the original test split: val200 from its first half. Its second half is the test set.
_NORB_CUT = {"val": Slice("test", 0, 200), "test": Slice("test", 12150)}

_NATURAL = (
    _named(
        "caltech101",
        "natural",
        102,
        {"train": 3059, "test": 6085},
        "accordion/image_0001.jpg",
        pattern=_FOLDER_AND_FILE,
        val=_train_from(2753),
    ),
    _numbered("cifar", "natural", 100, _CIFAR, _ROWS, val=_train_from(45000)),
    _named("dtd", "natural", 47, _DTD, "banded/banded_0002.jpg", pattern=_FOLDER_AND_FILE),
    _named("oxford_flowers102", "natural", 102, _FLOWERS, "image_00607.jpg", pattern=r"image_\d{5}\.jpg"),
    _named(
        "oxford_iiit_pet",
        "natural",
        37,
        {"train": 3680, "test": 3669},
        "Abyssinian_100.jpg",
        pattern=r"[^/]+_\d+\.jpg",
        val=_train_from(3312),
    ),
    _numbered("svhn", "natural", 10, {"train": 73257, "test": 26032}, _ROWS, val=_train_from(65931)),
    _named("sun397", "natural", 397, _SUN, "/a/abbey/sun_aaalbzqrimafwbiv.jpg", pattern=r"/.+\.jpg"),
)
_SPECIALIZED = (
    _numbered("patch_camelyon", "specialized", 2, _PCAM, _PCAM_ROWS),
    _named(
        "eurosat",
        "specialized",
        10,
        {"train": 27000},
        "AnnualCrop_AnnualCrop_1.jpg",
        pattern=_CLASS_AND_FILE,
        val=_train_from(16200),
        test=Slice("train", 21600),
    ),
    _named(
        "resisc45",
        "specialized",
        45,
        {"train": 31500},
        "airplane_airplane_001.jpg",
        pattern=_CLASS_AND_FILE,
        val=_train_from(18900),
        test=Slice("train", 25200),
    ),
    _named("diabetic_retinopathy", "specialized", 5, _RETINA, "24261_left", pattern=r"\d+_(left|right)"),
)
_STRUCTURED = (
    _numbered("clevr_count", "structured", 8, _CLEVR, _CLEVR_ROWS, **_CLEVR_CUT),
    _numbered("clevr_dist", "structured", 6, _CLEVR, _CLEVR_ROWS, **_CLEVR_CUT),
    _named("dmlab", "structured", 6, _DMLAB, "video_600_5_976.jpg", pattern=r"[^/]+\.jpg"),
    _named("kitti", "structured", 4, _KITTI, "000123.png", pattern=r"\d{6}\.png"),
    _numbered("dsprites_loc", "structured", 16, {"train": 737280}, {"train": "{}"}, **_DSPRITES_CUT),
    _numbered("dsprites_ori", "structured", 16, {"train": 737280}, {"train": "{}"}, **_DSPRITES_CUT),
    _numbered("smallnorb_azi", "structured", 18, _NORB, _ROWS, **_NORB_CUT),
    _numbered("smallnorb_ele", "structured", 9, _NORB, _ROWS, **_NORB_CUT),
)

TASKS: Mapping[str, VtabTask] = {task.name: task for task in _NATURAL + _SPECIALIZED + _STRUCTURED}


def find_task(name: str) -> VtabTask:
    """Return the task with this name.

    Raises:
        DataError: The task is unknown. The message lists the known ones.
    """
    if name not in TASKS:
        raise DataError(f"{name!r} is not a VTAB-1k task. The tasks are: {', '.join(TASKS)}.")
    return TASKS[name]


def check_split(split: str) -> None:
    """Check the name of a VTAB split.

    Raises:
        DataError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise DataError(f"{split!r} is not a VTAB-1k split. The splits are: {', '.join(SPLITS)}.")
