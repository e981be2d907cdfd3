# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The miniature's tasks: 200 training, 200 validation and 500 test images, decoded once.

    digits                scikit-learn's scanned digits                     10 classes
    sprite_position       where a drawn sprite is (sprites.py)               8
    cifar10               CIFAR-10's test split, unseen by the backbones    10
    dtd10                 ten textures of DTD                               10
    sprite_orientation    which way a drawn sprite points                    8

CIFAR-10 and DTD require a folder with `cifar10_jpeg/data/test-*.parquet` (columns image and label) and
`dtd10/images/<class>/*.jpg`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from gated_prompt.errors import DataError
from gated_prompt.images import decode
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize, resize_square
from paper.tasks import load_task

from . import sprites

SIZES = {"train": 200, "val": 200, "test": 500}
Part = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class MiniTask:
    """Normalised pixels (N, 3, 32, 32) and classes (N,) of each part, and the class names."""

    parts: dict[str, Part]
    class_names: list[str]


def _make(parts: Mapping[str, tuple[Sequence[Image.Image], Sequence[int]]], names: Sequence[str]) -> MiniTask:
    made = {}
    for part, (images, labels) in parts.items():
        pixels = torch.stack([resize_square(image, sprites.SIDE, "antialias").round() for image in images])
        made[part] = normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), torch.tensor(labels)
    return MiniTask(made, list(names))


def _digits(data_dir: Path | None) -> MiniTask:
    task, tested = (load_task("digits", None, "train800", split) for split in ("val200", "test"))
    parts = {}
    for (part, size), data in zip(SIZES.items(), (task.train, task.eval, tested.eval), strict=True):
        parts[part] = ([data.images[i] for i in range(size)], list(data.labels[:size]))
    return _make(parts, task.class_names)


def _sprites(data_dir: Path | None, *, kind: str) -> MiniTask:
    order = np.random.default_rng(0).permutation(sum(SIZES.values())).tolist()
    images = [Image.fromarray(sprites.draw(index)) for index in order]
    return _cut(images, [sprites.label(index, kind) for index in order], [str(i) for i in range(sprites.BINS)])


def _cifar10(data_dir: Path | None) -> MiniTask:
    from datasets import load_dataset

    folder = _subfolder(data_dir, "cifar10_jpeg/data")
    data = load_dataset("parquet", data_files={"test": str(folder / "test-*.parquet")}, split="test")
    order = np.random.default_rng(0).permutation(len(data))[: sum(SIZES.values())]
    images = [image.convert("RGB") for image in data.select(order)["image"]]
    return _cut(images, np.asarray(data["label"])[order].tolist(), data.features["label"].names)


def _dtd10(data_dir: Path | None) -> MiniTask:
    folder = _subfolder(data_dir, "dtd10/images")
    files = sorted(folder.glob("*/*.jpg"))
    names = sorted({file.parent.name for file in files})
    chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: sum(SIZES.values())]]
    images = [decode(file, file.name) for file in tqdm(chosen, desc="decode", leave=False)]
    return _cut(images, [names.index(file.parent.name) for file in chosen], names)


def _cut(images: Sequence[Image.Image], labels: Sequence[int], names: Sequence[str]) -> MiniTask:
    parts, first = {}, 0
    if len(images) != sum(SIZES.values()):
        raise DataError(f"found {len(images)} images, expected {sum(SIZES.values())}")
    for part, size in SIZES.items():
        parts[part] = (images[first : first + size], labels[first : first + size])
        first += size
    return _make(parts, names)


def _subfolder(data_dir: Path | None, below: str) -> Path:
    folder = None if data_dir is None else data_dir / below
    if folder is None or not folder.is_dir():
        raise DataError(f"{below} is missing in {data_dir}; give the right --data_dir, or leave the task out")
    return folder


TASKS: dict[str, Callable[[Path | None], MiniTask]] = {
    "digits": _digits,
    "sprite_position": partial(_sprites, kind="position"),
    "cifar10": _cifar10,
    "dtd10": _dtd10,
    "sprite_orientation": partial(_sprites, kind="orientation"),
}
FREE = ("digits", "sprite_position", "sprite_orientation")  # require no folder


def load(name: str, data_dir: Path | None) -> MiniTask:
    """Load one of `TASKS`.

    Raises:
        DataError: the folder is missing or holds too few images.
    """
    return TASKS[name](data_dir)
