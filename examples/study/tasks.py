# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The tasks of the studies, decoded once and kept as bytes.

Real images at 98 x 98 pixels (7 x 7 patches of 14):

    eurosat      VTAB-1k's own images: 800 to train on, 200 to choose with, 5400 to score
    caltech101   800, 200 and 1500 images of Caltech-101, drawn for this comparison
    flowers      800, 200 and 1000 images of Oxford Flowers, likewise
    dtd10        ten textures of DTD: 600, 200 and 400 images, drawn here with seed 0

In miniature, 200 training, 200 validation and 500 test images at 32 x 32 pixels:

    digits                scikit-learn's scanned digits                     10 classes
    sprite_position       where a drawn sprite is                            8
    cifar10               CIFAR-10's test split, unseen by the backbones    10
    dtd10                 ten textures of DTD                               10
    sprite_orientation    which way a drawn sprite points                    8

`data_dir` holds `real_vtab/` in the "vtab-1k" layout, `dtd10/images/<class>/*.jpg` and
`cifar10_jpeg/data/test-*.parquet` (columns image and label). Digits and sprites need no folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gated_prompt.errors import DataError
from gated_prompt.images import decode
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize, resize_square
from paper.tasks import load_task

SIDE = 98
LISTS = {"train": "train800", "val": "val200", "test": "test"}
FOLDERS = {"eurosat": "eurosat", "caltech101": "caltech101_like", "flowers": "flowers_like"}
DTD_SIZES = {"train": 600, "val": 200, "test": 400}
MINI_SIZES = {"train": 200, "val": 200, "test": 500}
SPRITE_SIDE = 32  # pixels
BINS = 8  # classes of each task
SAMPLES = 4  # per pixel and axis
MARGIN = 7.0  # pixels between the border and the nearest centre
Pictures = tuple[Sequence[Image.Image], Sequence[int]]


@dataclass(frozen=True)
class Part:
    """`pixels`: uint8 (N, 3, H, W); `labels`: (N,)."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (B, 3, H, W) of these images."""
        return normalize(self.pixels[index], IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class Task:
    """Images by part ("train", "val", "test"), and the number of classes."""

    name: str
    parts: Mapping[str, Part]
    num_classes: int


def load(name: str, data_dir: Path | None) -> Task:
    """Decode one of `REAL` or `MINIATURE`. In miniature the names begin with "mini_".

    Raises:
        DataError: the folder or an image is missing, or there are too few images.
    """
    make, side = LOADERS[name]
    parts = make(data_dir)
    read = {
        part: Part(
            torch.stack([resize_square(image, side, "antialias") for image in images]).round().to(torch.uint8),
            torch.tensor(labels),
        )
        for part, (images, labels) in parts.items()
    }
    return Task(name, read, 1 + max(int(part.labels.max()) for part in read.values()))


def _listed(data_dir: Path | None, *, folder: str) -> dict[str, Pictures]:
    where = _subfolder(data_dir, f"real_vtab/{folder}")
    found: dict[str, Pictures] = {}
    for part, name in LISTS.items():
        file = where / f"{name}.txt"
        if not file.is_file():
            raise DataError(f"{file} is missing. Each task folder must have {name}.txt beside images/{name}/.")
        lines = [line.rpartition(" ") for line in file.read_text(encoding="utf-8").splitlines()]
        found[part] = ([decode(where / image, image) for image, _, _ in lines], [int(label) for *_, label in lines])
    return found


def _dtd(data_dir: Path | None, *, sizes: Mapping[str, int]) -> dict[str, Pictures]:
    folder = _subfolder(data_dir, "dtd10/images")
    files = sorted(folder.glob("*/*.jpg"))
    if len(files) < sum(sizes.values()):
        raise DataError(f"{folder} holds {len(files)} images, {sum(sizes.values())} are needed")
    names = sorted({file.parent.name for file in files})
    chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: sum(sizes.values())]]
    images = [decode(file, file.name) for file in chosen]
    return _cut(images, [names.index(file.parent.name) for file in chosen], sizes)


def _digits(_data_dir: Path | None) -> dict[str, Pictures]:
    task, tested = (load_task("digits", None, "train800", split) for split in ("val200", "test"))
    return {
        part: ([data.images[i] for i in range(size)], list(data.labels[:size]))
        for (part, size), data in zip(MINI_SIZES.items(), (task.train, task.eval, tested.eval), strict=True)
    }


def sprite_label(index: int, kind: str) -> int:
    """Return the class of image `index`: its orientation in steps of 45 degrees, or its column from the left."""
    return index % BINS if kind == "orientation" else index // BINS % BINS


def draw_sprite(index: int) -> np.ndarray:
    """Draw image `index`, uint8 (32, 32, 3).

    A slim triangle points in the direction of the orientation, with a jitter of up to 10 degrees. Its centre lies in
    the column of the position, at any height. Size and both colours vary.
    """
    rng = np.random.default_rng((index, 2023))
    angle = np.deg2rad(45 * sprite_label(index, "orientation") + rng.uniform(-10, 10))
    width = (SPRITE_SIDE - 2 * MARGIN) / BINS
    x = MARGIN + width * (sprite_label(index, "position") + rng.uniform(0.1, 0.9))
    y = rng.uniform(MARGIN, SPRITE_SIDE - MARGIN)
    length = rng.uniform(5.0, 6.5)
    ground, ink = rng.uniform(0, 100, 3), rng.uniform(150, 255, 3)

    grid = (np.arange(SPRITE_SIDE * SAMPLES) + 0.5) / SAMPLES
    across, down = grid[None, :] - x, grid[:, None] - y
    along = np.cos(angle) * across - np.sin(angle) * down  # rows are counted downwards
    aside = np.sin(angle) * across + np.cos(angle) * down
    inside = (along > -0.7 * length) & (np.abs(aside) < 0.35 * (length - along))
    cover = inside.reshape(SPRITE_SIDE, SAMPLES, SPRITE_SIDE, SAMPLES).mean((1, 3))[:, :, None]
    return np.rint(ground + (ink - ground) * cover).astype(np.uint8)


def _sprites(_data_dir: Path | None, *, kind: str) -> dict[str, Pictures]:
    order = np.random.default_rng(0).permutation(sum(MINI_SIZES.values())).tolist()
    images = [Image.fromarray(draw_sprite(index)) for index in order]
    return _cut(images, [sprite_label(index, kind) for index in order], MINI_SIZES)


def _cifar10(data_dir: Path | None) -> dict[str, Pictures]:
    from datasets import load_dataset

    folder = _subfolder(data_dir, "cifar10_jpeg/data")
    data = load_dataset("parquet", data_files={"test": str(folder / "test-*.parquet")}, split="test")
    order = np.random.default_rng(0).permutation(len(data))[: sum(MINI_SIZES.values())]
    images = [image.convert("RGB") for image in data.select(order)["image"]]
    return _cut(images, np.asarray(data["label"])[order].tolist(), MINI_SIZES)


def _cut(images: Sequence[Image.Image], labels: Sequence[int], sizes: Mapping[str, int]) -> dict[str, Pictures]:
    if len(images) != sum(sizes.values()):
        raise DataError(f"found {len(images)} images, expected {sum(sizes.values())}")
    parts, first = {}, 0
    for part, size in sizes.items():
        parts[part] = (images[first : first + size], labels[first : first + size])
        first += size
    return parts


def _subfolder(data_dir: Path | None, below: str) -> Path:
    folder = None if data_dir is None else data_dir / below
    if folder is None or not folder.is_dir():
        raise DataError(f"{below} is missing in {data_dir}. Give the right --data_dir, or leave the task out.")
    return folder


LOADERS: dict[str, tuple[Callable[[Path | None], dict[str, Pictures]], int]] = {
    **{name: (partial(_listed, folder=folder), SIDE) for name, folder in FOLDERS.items()},
    "dtd10": (partial(_dtd, sizes=DTD_SIZES), SIDE),
    "mini_digits": (_digits, SPRITE_SIDE),
    "mini_sprite_position": (partial(_sprites, kind="position"), SPRITE_SIDE),
    "mini_cifar10": (_cifar10, SPRITE_SIDE),
    "mini_dtd10": (partial(_dtd, sizes=MINI_SIZES), SPRITE_SIDE),
    "mini_sprite_orientation": (partial(_sprites, kind="orientation"), SPRITE_SIDE),
}
REAL = (*FOLDERS, "dtd10")
MINIATURE = ("digits", "sprite_position", "cifar10", "dtd10", "sprite_orientation")
FREE = ("digits", "sprite_position", "sprite_orientation")  # require no folder
