# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Crops to train on: flipped, scaled, cut and coloured at random, image and labels alike."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import Dataset

from ...segmentation.predictor import MaskPredictor
from ...segmenter import IGNORE
from ...transforms import normalize, to_pixels
from .mask_set import MaskSet

SCALES = (0.75, 1.5)
COLOUR = 0.3  # largest relative change of brightness, contrast and saturation
Size = tuple[int, int]


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (pixels (3, *size), labels (*size)), padded with 0 and `IGNORE` where an image is smaller.

    With `seed`, each crop depends on seed, epoch and index alone, so that a resumed run sees those of one that was
    never stopped, with any number of processes that decode. Without, images are scaled to `size` and nothing is drawn.
    """

    def __init__(self, data: MaskSet, predictor: MaskPredictor, size: Size, seed: int | None) -> None:
        self.data, self.predictor, self.size, self.seed, self.epoch = data, predictor, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.data.image(index), self.data.labels(index)
        if self.seed is None:
            image, labels = _scaled(image, labels, self.size)
        else:
            rng = np.random.default_rng((self.seed, self.epoch, index))
            image, labels = self._drawn(image, labels, rng)
        wanted = self.predictor.preparation
        pixels = torch.zeros(3, *self.size)
        target = torch.full(self.size, IGNORE)
        pixels[:, : image.height, : image.width] = normalize(to_pixels(image), wanted["mean"], wanted["std"])
        target[: image.height, : image.width] = labels
        return pixels, target

    def _drawn(self, image: Image.Image, labels: Tensor, rng: np.random.Generator) -> tuple[Image.Image, Tensor]:
        scale = math.exp(rng.uniform(*np.log(SCALES)))
        factor = scale * self.predictor.preparation["short_side"] / min(image.size)
        size = max(1, round(image.height * factor)), max(1, round(image.width * factor))
        image, labels = _scaled(image, labels, size)
        top, left = (int(rng.integers(max(0, side - crop) + 1)) for side, crop in zip(size, self.size, strict=True))
        bottom, right = min(top + self.size[0], size[0]), min(left + self.size[1], size[1])
        image, labels = image.crop((left, top, right, bottom)), labels[top:bottom, left:right]
        if rng.random() < 0.5:
            image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels.flip(-1)
        for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = kind(image).enhance(1 + float(rng.uniform(-COLOUR, COLOUR)))
        return image, labels


def crop_size(sizes: Sequence[Size], window: int) -> Size:
    """The most frequent size (height, width) of the scaled images, at most a window on each side."""
    counted: dict[Size, int] = {}
    for size in sizes:
        counted[size] = counted.get(size, 0) + 1
    height, width = max(counted, key=lambda size: (counted[size], size))
    return min(height, window), min(width, window)


def _scaled(image: Image.Image, labels: Tensor, size: Size) -> tuple[Image.Image, Tensor]:
    small = F.interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].long()
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR), small
