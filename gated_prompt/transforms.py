# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's preprocessing, using only Pillow and torch.

    VTAB-1k   resize to 224 x 224 without cropping, as TensorFlow 1 does. No augmentation
    FGVC      resize the short side to 256. Random 224 x 224 crop and flip for training, centre crop for evaluation

The transforms return float tensors (3, height, width), normalised with the mean and std of the backbone, which are
ImageNet's for MAE, MoCo v3 and DINO.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .errors import DataError, RemovedNameError
from .images import LabelledImages

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Sampling = Literal["tf1", "half_pixel", "antialias"]


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB image to a uint8 tensor (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert grey levels (..., 3, height, width), bytes or floats, to ((grey / 255) - mean) / std per channel."""
    center, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (pixels.float() / 255 - center) / scale


def resize_square(image: Image.Image, size: int, sampling: Sampling = "tf1") -> Tensor:
    """Resize bilinearly to float (3, size, size) in grey levels from 0 to 255, ignoring the aspect ratio.

    Args:
        image: RGB image.
        size: Side in pixels.
        sampling: Where output pixel i of n lies in an input of m pixels. "tf1": at i * m / n, as
            `tf.compat.v1.image.resize` does, with which published VTAB results were made. "half_pixel": at
            (i + 0.5) * m / n - 0.5, as `tf.image.resize` does. "antialias": there too, averaging over m / n pixels
            when the image shrinks, as Pillow does.

    Raises:
        DataError: The sampling is unknown.
    """
    if sampling not in get_args(Sampling):
        raise DataError(f"sampling is {sampling!r}. Choose from: {', '.join(get_args(Sampling))}.")
    pixels = to_pixels(image)
    if sampling == "tf1":
        return _resize_tf1(pixels, size)
    shape, antialias = (size, size), sampling == "antialias"
    return F.interpolate(pixels[None].float(), shape, mode="bilinear", align_corners=False, antialias=antialias)[0]


def _resize_tf1(pixels: Tensor, size: int) -> Tensor:
    """Sample bytes (3, height, width) at i * m / n in float32, first along x and then along y, as TensorFlow does."""
    (upper, lower, down), (left, right, across) = (_neighbours(length, size) for length in pixels.shape[1:])

    def along_x(rows: Tensor) -> Tensor:
        chosen = pixels[:, rows]
        first = chosen[..., left].float()
        return first + (chosen[..., right].float() - first) * across

    top = along_x(upper)
    return top + (along_x(lower) - top) * down[:, None]


def _neighbours(length: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two input pixels around each output pixel, and the share of the second."""
    step = float(np.float32(length) / np.float32(size))  # rounded to float32, as in TensorFlow
    place = torch.arange(size, dtype=torch.float32) * step
    first = place.floor().long().clamp(max=length - 1)
    return first, (first + 1).clamp(max=length - 1), place - first


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` pixels and the long side in proportion, rounded down."""
    width, height = image.size
    short = min(width, height)
    return image.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class ResizeSquare:
    """Resize an RGB image without cropping, and normalise it: float (3, size, size).

    Attributes:
        mean, std: Per channel, of pixels in [0, 1].
        size: Side in pixels.
        sampling: See `resize_square`.
        round_to_bytes: Round grey levels before they are normalised, as this package did before `sampling` existed.
    """

    mean: Sequence[float]
    std: Sequence[float]
    size: int = 224
    sampling: Sampling = "tf1"
    round_to_bytes: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = resize_square(image, self.size, self.sampling)
        return normalize(pixels.round() if self.round_to_bytes else pixels, self.mean, self.std)


@dataclass(frozen=True)
class ResizeCenterCrop:
    """Crop an RGB image and normalise it: float (3, crop, crop).

    Attributes:
        mean, std: Per channel, of pixels in [0, 1].
        train: Crop at random and flip with probability 0.5, using torch's generator. Otherwise take the centre crop.
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
    """Pairs (pixels, class). The transform runs on every access."""

    def __init__(self, data: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data = data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return self.transform(image), label


class CachedImages(Dataset[tuple[Tensor, int]]):
    """Images decoded and transformed once, for transforms without augmentation: every epoch sees the same pixels.

    1000 images of 224 x 224 pixels take 600 MB.

    Attributes:
        pixels: float32 (images, 3, size, size), as the transform returns them.
        labels: int64 (images,).
        data: The underlying data set.
    """

    def __init__(self, data: LabelledImages, transform: ResizeSquare) -> None:
        self.data = data
        self.transform = transform
        self.pixels = torch.empty(len(data), 3, transform.size, transform.size)
        for index in range(len(data)):
            self.pixels[index] = transform(data[index][0])
        self.labels = torch.tensor(data.labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], int(self.labels[index])


def __getattr__(name: str) -> Any:
    if name in ("VtabTransform", "FgvcTransform", "resize_to_square"):
        raise RemovedNameError(f"transforms.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
