# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's preprocessing, using only Pillow and torch.

    VTAB-1k   resize to 224 x 224 without cropping, bilinear; no augmentation
    FGVC      resize the short side to 256; random 224 x 224 crop and flip for training, centre crop for evaluation

The transforms return float tensors (3, height, width), normalised with the mean and std of the backbone, which are
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

from .errors import DataError
from .images import LabelledImages

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB image to a uint8 tensor (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert uint8 (..., 3, height, width) to float: ((pixel / 255) - mean) / std per channel."""
    center, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (pixels.float() / 255 - center) / scale


def resize_to_square(image: Image.Image, size: int, *, antialias: bool = False) -> Tensor:
    """Resize bilinearly to uint8 (3, size, size), ignoring the aspect ratio.

    Args:
        image: RGB image.
        size: Side in pixels.
        antialias: False samples like `tf.image.resize`, which published VTAB results use; True averages when
            downsampling, like Pillow.
    """
    pixels = to_pixels(image)[None].float()
    resized = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=antialias)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` pixels and the long side in proportion, rounded down."""
    width, height = image.size
    short = min(width, height)
    return image.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class VtabTransform:
    """Resize an RGB image without cropping, and normalise it: float (3, size, size)."""

    mean: Sequence[float]
    std: Sequence[float]
    size: int = 224
    antialias: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        return normalize(resize_to_square(image, self.size, antialias=self.antialias), self.mean, self.std)


@dataclass(frozen=True)
class FgvcTransform:
    """Crop an RGB image and normalise it: float (3, crop, crop).

    Attributes:
        mean, std: Per channel, of pixels in [0, 1].
        train: Crop at random and flip with probability 0.5, using torch's generator; otherwise take the centre crop.
        resize: Short side before the crop, in pixels.
        crop: Side of the crop, in pixels.

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
    """(pixels, class) pairs; the transform runs on every access."""

    def __init__(self, data: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data = data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return self.transform(image), label


class CachedImages(Dataset[tuple[Tensor, int]]):
    """VTAB images, decoded and resized once and kept as bytes: 1000 images of 224 x 224 pixels take 150 MB.

    VTAB training uses no augmentation, so every epoch sees the same pixels.

    Attributes:
        pixels: uint8 (images, 3, size, size).
        labels: int64 (images,).
        data: The underlying data set.
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
