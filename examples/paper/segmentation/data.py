# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Segmentation tasks, and the crops that SETR trains on.

    ade20k    150 classes, splits training and validation
    camvid    11 classes, splits train and test
    others    your own folder in the same layout, splits training and validation

Images are scaled to a short side of `short_side` pixels (times 0.5 to 2 in training), and then cropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gated_prompt.data.ade20k import ADE20K, CAMVID, IGNORE, LabelledMasks, SegmentationSpec, load_folder, load_hub
from gated_prompt.errors import DataError
from gated_prompt.segmentation.sliding_window import scaled_size
from gated_prompt.transforms import normalize, to_pixels

KNOWN = {"ade20k": ADE20K, "camvid": CAMVID}
SPLITS = {"camvid": ("train", "test")}
CAMVID_NAMES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian"]
CAMVID_NAMES += ["bicyclist"]
SCALES = (0.5, 2.0)
MAX_CLASS_SHARE = 0.75  # a crop with a larger share of one class is drawn again, up to ten times
MAX_TRIES = 10

Pair = tuple[Image.Image, Image.Image]


@dataclass(frozen=True)
class SegmentationTask:
    """The images for training, and those for testing, which are scored once."""

    name: str
    class_names: list[str]
    train: LabelledMasks
    test: LabelledMasks


def load_task(
    name: str,
    data_dir: str | None = None,
    num_classes: int | None = None,
    reduce_labels: bool = False,
    ignore_label: int = IGNORE,
) -> SegmentationTask:
    """Load a task by name, from a folder in ADE20K's layout or, for ade20k without a folder, from the Hub.

    `num_classes`, `reduce_labels` (stored 0 is ignored, 1 is the first class) and `ignore_label` describe your own
    data, under a name that you choose.

    Raises:
        DataError: the name is unknown and `num_classes` is missing, or the data are invalid.
    """
    if (name in KNOWN) is (num_classes is not None):
        raise DataError(
            f"the labels of {name} are built in. Leave out --num_classes, or give the task another name."
            if name in KNOWN
            else f"unknown task {name!r}. Choose from: {', '.join(KNOWN)}. For your own data, give --num_classes."
        )
    if data_dir is None and name != "ade20k":
        raise DataError(f"{name} has no source on the Hub. Give --data_dir, a folder with images/ and annotations/.")
    spec = KNOWN.get(name) or _describe(name, num_classes or 0, reduce_labels, ignore_label)
    splits = SPLITS.get(name, ("training", "validation"))
    train, test = (load_hub(split) if data_dir is None else load_folder(data_dir, split, spec) for split in splits)
    names = CAMVID_NAMES if name == "camvid" else train.class_names or map(str, range(spec.num_classes))
    return SegmentationTask(name, list(names), train, test)


def _describe(name: str, num_classes: int, reduce_labels: bool, ignore_label: int) -> SegmentationSpec:
    first = int(reduce_labels)
    last = first + num_classes - 1
    if num_classes < 2 or last >= IGNORE:
        raise DataError(
            f"--num_classes is {num_classes}. Expected 2 to {IGNORE - first}, to fit in one byte per pixel."
        )
    if first <= ignore_label <= last or not 0 <= ignore_label <= 255:
        raise DataError(
            f"--ignore_label is {ignore_label}, expected 0 to 255 outside the classes, which are {first} to {last}"
        )
    return SegmentationSpec(name, num_classes, first, (ignore_label, *([0] if reduce_labels else [])))


def random_crop(image: Image.Image, mask: Image.Image, short_side: int, crop: int, rng: np.random.Generator) -> Pair:
    """Scale, crop and flip image and mask alike at random. The crop has at most `crop` x `crop` pixels."""
    size = scaled_size(image.size, short_side * rng.uniform(*SCALES))
    image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
    free = [max(0, side - crop) for side in size]
    for _ in range(MAX_TRIES):
        left, top = (int(rng.integers(each + 1)) for each in free)
        box = (left, top, min(left + crop, size[0]), min(top + crop, size[1]))
        counts = np.bincount(np.asarray(mask.crop(box)).ravel(), minlength=256)[:IGNORE]
        if np.count_nonzero(counts) > 1 and counts.max() < MAX_CLASS_SHARE * counts.sum():
            break
    image, mask = image.crop(box), mask.crop(box)
    if rng.random() < 0.5:
        flip = Image.Transpose.FLIP_LEFT_RIGHT
        image, mask = image.transpose(flip), mask.transpose(flip)
    return image, mask


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Random crops (pixels (3, crop, crop), labels (crop, crop)), padded with 0 and `IGNORE` where they are smaller.

    Each crop depends only on seed, epoch and index, so a resumed run sees the same crops as an uninterrupted one, with
    any number of worker processes.
    """

    def __init__(
        self,
        data: LabelledMasks,
        count: int,
        short_side: int,
        crop: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
    ) -> None:
        self.data, self.count, self.short_side, self.crop = data, count, short_side, crop
        self.mean, self.std, self.seed = mean, std, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; call this before each pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        image, mask = random_crop(*self.data[index], self.short_side, self.crop, rng)
        width, height = image.size
        pixels = torch.zeros(3, self.crop, self.crop)
        labels = torch.full((self.crop, self.crop), IGNORE)
        pixels[:, :height, :width] = normalize(to_pixels(image), self.mean, self.std)
        labels[:height, :width] = torch.from_numpy(np.array(mask)).long()
        return pixels, labels


class WholeImages(Dataset[tuple[Tensor, Tensor]]):
    """Images in their original size, for evaluation: (pixels (3, H, W), labels (H, W))."""

    def __init__(self, data: LabelledMasks, mean: Sequence[float], std: Sequence[float]) -> None:
        self.data, self.mean, self.std = data, mean, std

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.data[index]
        return normalize(to_pixels(image), self.mean, self.std), torch.from_numpy(np.array(mask)).long()
