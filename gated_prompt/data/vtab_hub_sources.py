# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Where each VTAB-1k task is on the Hugging Face Hub, and how its rows map to original examples.

There are three cases, best first:
1. A column holds the original file name, or columns hold the factors that determine the row number.
2. The rows are in the original order, which a check confirms, so the row number is the key.
3. Neither: only a VTAB-like split is possible. This includes TFDS exports without a key column: reading a whole TFDS
   split interleaves its shards, so the first 800 rows are not `train[:800]`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from . import vtab_labels as labels
from .hub import HubTable


@dataclass(frozen=True)
class HubSource:
    """One task's Hub data set.

    Attributes:
        repo, config: Hub repository and its configuration.
        image: Image column.
        label: Label columns.
        to_label: Computes the class from the values of the label columns.
        splits: Original split -> the Hub splits that it consists of. A split that VTAB uses but this mapping lacks
            is not on the Hub.
        revision: Commit that this entry describes. None if it is not pinned.
        key: Columns that determine the original key.
        to_key: Computes the key from their values.
        in_original_order: Checks a table of the named original split for the original row order, in which the row
            number is the key.
        finish: Applied to each decoded image.
    """

    repo: str
    image: str = "image"
    label: tuple[str, ...] = ("label",)
    to_label: Callable[..., int] = int
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config: str | None = None
    revision: str | None = None
    key: tuple[str, ...] = ()
    to_key: Callable[..., str | int] = str
    in_original_order: Callable[[HubTable, str], bool] | None = None
    finish: Callable[[Image.Image], Image.Image] | None = None


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


_TRAIN_TEST = _same("train", "test")
_TRAIN_VALIDATION_TEST = _same("train", "validation", "test")


def _starts_with(column: str, firsts: Mapping[str, Sequence[int]]) -> Callable[[HubTable, str], bool]:
    """Return a check that the first labels are those of the original file."""

    def check(table: HubTable, split: str) -> bool:
        first = firsts[split]
        return len(table) >= len(first) and table.values(column, range(len(first))) == list(first)

    return check


def _categories_cycle(table: HubTable, split: str) -> bool:
    """Check the row order: the original smallNORB files cycle through the five categories."""
    return table.values("category") == [row % 5 for row in range(len(table))]


def _binary_to_255(image: Image.Image) -> Image.Image:
    """Scale dSprites' values 0 and 1 to 0 and 255, unless the export already did."""
    return image.point(lambda value: value * 255) if np.asarray(image).max() <= 1 else image


def _file_name(image_id: str) -> str:
    return image_id.rsplit("/", 1)[-1].removesuffix(".jpg") + ".jpg"


def _class_and_file(image_id: str) -> str:
    """Prefix the file name with its class, as TFDS does although the name already starts with it."""
    name = _file_name(image_id)
    return f"{name.rsplit('_', 1)[0]}_{name}"


def _folder_and_file(stored_path: str | None) -> str:
    name = _file_name(stored_path or "")
    return f"{name.rsplit('_', 1)[0]}/{name}"


def _clevr_depths(objects: Any) -> list[float]:
    """`objects` is a list of records or a record of lists, depending on the version of `datasets`."""
    if isinstance(objects, Mapping):
        return [point[2] for point in objects["pixel_coords"]]
    return [each["pixel_coords"][2] for each in objects]


def _dsprites(factor: str, to_label: Callable[[int], int]) -> HubSource:
    return HubSource(
        "dpdl-benchmark/dsprites",
        label=(factor,),
        to_label=to_label,
        splits=_same("train"),
        key=("label_shape", "label_scale", "label_orientation", "label_x_position", "label_y_position"),
        to_key=labels.dsprites_index,
        finish=_binary_to_255,
    )


def _smallnorb(column: str, to_label: Callable[[int], int]) -> HubSource:
    return HubSource(
        "Ramos-Ramos/smallnorb",
        image="image_lt",
        label=(column,),
        to_label=to_label,
        splits=_TRAIN_TEST,
        in_original_order=_categories_cycle,
    )


def _clevr(to_label: Callable[[Any], int]) -> HubSource:
    # Its `label_*` columns may or may not be binned. The objects are unambiguous.
    return HubSource(
        "dpdl-benchmark/clevr",
        label=("objects",),
        to_label=to_label,
        splits={"train": ("train",), "validation": ("test",)},
    )


HUB_SOURCES: Mapping[str, HubSource] = {
    "caltech101": HubSource("dpdl-benchmark/caltech101", splits=_TRAIN_TEST),
    "cifar": HubSource(
        "uoft-cs/cifar100",
        image="img",
        label=("fine_label",),
        splits=_TRAIN_TEST,
        revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        in_original_order=_starts_with(
            "fine_label",
            {"train": (19, 29, 0, 11, 1, 86, 90, 28, 23, 31), "test": (49, 33, 72, 51, 71, 92, 15, 14, 23, 0)},
        ),
    ),
    "dtd": HubSource(
        "mcimpoi/dtd_split_1", splits=_TRAIN_VALIDATION_TEST, key=("image.path",), to_key=_folder_and_file
    ),
    "oxford_flowers102": HubSource("dpdl-benchmark/oxford_flowers102", splits=_TRAIN_VALIDATION_TEST),
    "oxford_iiit_pet": HubSource("timm/oxford-iiit-pet", splits=_TRAIN_TEST, key=("image_id",), to_key=_file_name),
    "svhn": HubSource(
        "ufldl-stanford/svhn",
        config="cropped_digits",
        to_label=labels.svhn,
        splits=_TRAIN_TEST,
        in_original_order=_starts_with(
            "label", {"train": (1, 9, 2, 3, 2, 5, 9, 3, 3, 1), "test": (5, 2, 1, 0, 6, 1, 9, 1, 1, 8)}
        ),
    ),
    "sun397": HubSource(
        "dpdl-benchmark/sun397",
        splits=_TRAIN_VALIDATION_TEST,
        revision="7e6af6a2499ad708618be868e1471eac0aca1168",
    ),
    "patch_camelyon": HubSource(
        "1aurent/PatchCamelyon", splits={"train": ("train",), "validation": ("valid",), "test": ("test",)}
    ),
    "eurosat": HubSource(
        "timm/eurosat-rgb",
        splits={"train": ("train", "validation", "test")},
        key=("image_id",),
        to_key=_class_and_file,
    ),
    "resisc45": HubSource(
        "timm/resisc45", splits={"train": ("train", "validation", "test")}, key=("image_id",), to_key=_class_and_file
    ),
    "diabetic_retinopathy": HubSource(
        "clip-benchmark/wds_vtab-diabetic_retinopathy", image="webp", label=("cls",), splits=_TRAIN_TEST
    ),
    "clevr_count": _clevr(lambda objects: labels.clevr_count(len(_clevr_depths(objects)))),
    "clevr_dist": _clevr(lambda objects: labels.clevr_distance(_clevr_depths(objects))),
    "dmlab": HubSource("dpdl-benchmark/dmlab", splits=_TRAIN_VALIDATION_TEST),
    "kitti": HubSource(
        "dpdl-benchmark/kitti", label=("label_distance",), splits=_TRAIN_VALIDATION_TEST, key=("image/file_name",)
    ),
    "dsprites_loc": _dsprites("label_x_position", labels.dsprites_location),
    "dsprites_ori": _dsprites("label_orientation", labels.dsprites_orientation),
    "smallnorb_azi": _smallnorb("azimuth", labels.smallnorb_azimuth),
    "smallnorb_ele": _smallnorb("elevation", labels.smallnorb_elevation),
}
