# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's preprocessing, with Pillow and torch alone.

    VTAB-1k   resize straight to 224 x 224, bilinear, no augmentation
    FGVC      short side to 256; random 224 x 224 crop and flip to train, centre crop to evaluate

Pixels leave as float tensors (3, height, width), normalised with the mean and std that you give: the backbone's, and
ImageNet's for MAE, MoCo v3 and DINO.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from .images import LabelledImages

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> uint8 (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (..., 3, height, width) -> float, ((pixel / 255) - mean) / std per channel."""
    center, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (pixels.float() / 255 - center) / scale


def resize_to_square(image: Image.Image, size: int, *, antialias: bool = False) -> Tensor:
    """Bilinear resize that does not keep the shape; uint8 (3, size, size).

    Args:
        image: RGB image.
        size: Side in pixels.
        antialias: False samples as `tf.image.resize` does, with which the published VTAB numbers were made; True
            averages when it shrinks, as Pillow does.
    """
    pixels = to_pixels(image)[None].float()
    resized = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=antialias)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Short side to `size`, the long one in proportion, rounded down."""
    width, height = image.size
    short = min(width, height)
    return image.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class VtabTransform:
    """RGB image -> normalised float (3, size, size), resized without cropping."""

    mean: Sequence[float]
    std: Sequence[float]
    size: int = 224
    antialias: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        return normalize(resize_to_square(image, self.size, antialias=self.antialias), self.mean, self.std)


@dataclass(frozen=True)
class FgvcTransform:
    """RGB image -> normalised float (3, crop, crop).

    Attributes:
        mean, std: Per channel, of pixels in [0, 1].
        train: Random crop, and a flip half of the time, drawn from torch's generator; otherwise the centre crop.
        resize: Short side before the crop, pixels.
        crop: Side of the crop, pixels.

    Raises:
        DataError: The crop is larger than the resized image.
    """

    mean: Sequence[float]
    std: Sequence[float]
    train: bool
    resize: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise DataError(f"A crop of {self.crop} does not fit into a short side of {self.resize}.")

    def __call__(self, image: Image.Image) -> Tensor:
        image = resize_short_side(image, self.resize)
        free_x, free_y = (side - self.crop for side in image.size)
        if self.train:
            left, top = (int(torch.randint(free + 1, ())) for free in (free_x, free_y))
        else:
            left, top = round(free_x / 2), round(free_y / 2)
        pixels = to_pixels(image.crop((left, top, left + self.crop, top + self.crop)))
        if self.train and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return normalize(pixels, self.mean, self.std)


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Applies a transform each time an image is asked for; the pairs are (pixels, class)."""

    def __init__(self, data: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data = data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return self.transform(image), label


class CachedImages(Dataset[tuple[Tensor, int]]):
    """VTAB images decoded and resized once and kept as bytes: 1000 of them are 150 MB at 224 pixels.

    VTAB training uses no augmentation, so every epoch sees the same pixels; decoding again would only cost time.

    Attributes:
        pixels: uint8 (images, 3, size, size).
        labels: int64 (images,).
        data: The data set that was read.
    """

    def __init__(self, data: LabelledImages, transform: VtabTransform) -> None:
        self.data = data
        self.transform = transform
        self.pixels = torch.empty(len(data), 3, transform.size, transform.size, dtype=torch.uint8)
        for index in range(len(data)):
            self.pixels[index] = resize_to_square(data[index][0], transform.size, antialias=transform.antialias)
        self.labels = torch.tensor(data.labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return normalize(self.pixels[index], self.transform.mean, self.transform.std), int(self.labels[index])
