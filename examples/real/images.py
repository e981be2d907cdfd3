# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The four tasks at 98 x 98 pixels, decoded once and kept as bytes.

    eurosat      VTAB-1k's own images: 800 to train on, 200 to choose with, 5400 to score
    caltech101   800, 200 and 1500 images of Caltech-101, drawn for this comparison
    flowers      800, 200 and 1000 images of Oxford Flowers, likewise
    dtd10        ten textures of DTD: 600, 200 and 400 images, drawn here with seed 0

The first three lie in the "vtab-1k" layout below `real_vtab/`, DTD as `dtd10/images/<class>/*.jpg`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gated_prompt.errors import DataError
from gated_prompt.images import decode
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize, resize_square

SIDE = 98  # pixels: 7 x 7 patches of 14
LISTS = {"train": "train800", "val": "val200", "test": "test"}
FOLDERS = {"eurosat": "eurosat", "caltech101": "caltech101_like", "flowers": "flowers_like"}
DTD_SIZES = {"train": 600, "val": 200, "test": 400}
TASKS = (*FOLDERS, "dtd10")


@dataclass(frozen=True)
class Part:
    """`pixels`: uint8 (N, 3, SIDE, SIDE); `labels`: (N,)."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (B, 3, SIDE, SIDE) of these images."""
        return normalize(self.pixels[index], IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class Task:
    """Images by part, and the number of classes."""

    name: str
    parts: dict[str, Part]
    num_classes: int


def load(name: str, data_dir: Path) -> Task:
    """Decode one of `TASKS`.

    Raises:
        DataError: the folder or an image is missing, or there are too few images.
    """
    files = _dtd(data_dir / "dtd10" / "images") if name == "dtd10" else _listed(data_dir / "real_vtab" / FOLDERS[name])
    parts = {part: _read(images) for part, images in files.items()}
    return Task(name, parts, 1 + max(int(part.labels.max()) for part in parts.values()))


def _listed(folder: Path) -> dict[str, list[tuple[Path, int]]]:
    found = {}
    for part, name in LISTS.items():
        file = folder / f"{name}.txt"
        if not file.is_file():
            raise DataError(f"{file} is missing; each task folder holds {name}.txt beside images/{name}/")
        lines = [line.rpartition(" ") for line in file.read_text(encoding="utf-8").splitlines()]
        found[part] = [(folder / image, int(label)) for image, _, label in lines]
    return found


def _dtd(folder: Path) -> dict[str, list[tuple[Path, int]]]:
    files = sorted(folder.glob("*/*.jpg"))
    if len(files) != sum(DTD_SIZES.values()):
        raise DataError(f"{folder} holds {len(files)} images, {sum(DTD_SIZES.values())} are needed")
    names = sorted({file.parent.name for file in files})
    order = iter(np.random.default_rng(0).permutation(len(files)).tolist())
    drawn = {part: [files[next(order)] for _ in range(size)] for part, size in DTD_SIZES.items()}
    return {part: [(file, names.index(file.parent.name)) for file in chosen] for part, chosen in drawn.items()}


def _read(images: list[tuple[Path, int]]) -> Part:
    pixels = [resize_square(decode(file, file.name), SIDE, "antialias") for file, _ in images]
    return Part(torch.stack(pixels).round().to(torch.uint8), torch.tensor([label for _, label in images]))
