# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Segment whole images with overlapping windows, at one or several scales, with or without mirror images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Predict = Callable[[nn.Module, Tensor], Tensor]  # `predict` with its settings filled in
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
MAX_ASPECT = 4  # the long side is scaled to at most this many short sides (2048 for 512)


def scaled_size(size: tuple[int, int], short_side: float, multiple: int = 1) -> tuple[int, int]:
    """The size (sides in either order) after scaling the short side to `short_side` pixels.

    Each side is rounded to a multiple of `multiple` pixels, at least one.
    """
    factor = min(short_side / min(size), MAX_ASPECT * short_side / max(size)) / multiple
    return multiple * max(1, round(size[0] * factor)), multiple * max(1, round(size[1] * factor))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where the windows along one side start. The last one is moved back to end with the image."""
    last = max(length - window, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def window_logits(model: Callable[[Tensor], Any], pixels: Tensor, window: int, stride: int, batch_size: int) -> Tensor:
    """Compute logits of one image (3, H, W), averaged over all windows that cover a pixel: (K, H, W).

    The model gets `batch_size` windows at once. Its `logits` (B, K, h, w) may be smaller than the windows. An image
    that is no larger than a window is a single one, whose logits (K, h, w) are returned as they are.
    """
    height, width = pixels.shape[1:]
    tall, wide = min(window, height), min(window, width)
    corners = [(y, x) for y in window_starts(height, tall, stride) for x in window_starts(width, wide, stride)]
    if len(corners) == 1:
        return model(pixels[None]).logits[0].float()
    total, count = pixels.new_zeros(()), pixels.new_zeros(height, width)
    for first in range(0, len(corners), batch_size):
        batch = corners[first : first + batch_size]
        logits = model(torch.stack([pixels[:, y : y + tall, x : x + wide] for y, x in batch])).logits.float()
        if not total.ndim:
            total = pixels.new_zeros(logits.shape[1], height, width)
        for (y, x), each in zip(batch, logits, strict=True):
            total[:, y : y + tall, x : x + wide] += resize(each, (tall, wide))
            count[y : y + tall, x : x + wide] += 1
    return total / count


@torch.inference_mode()
def predict(
    model: nn.Module,
    pixels: Tensor,
    short_side: int,
    window: int,
    stride: int,
    batch_size: int,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Compute class probabilities (K, H, W) of one image (3, H, W), averaged over scales and, with `flip`, mirroring.

    At scale s, the short side is s times `short_side`. Logits are resized to H x W before the softmax.
    """
    size = (pixels.shape[1], pixels.shape[2])
    total = pixels.new_zeros(())
    for scale in scales:
        scaled = resize(pixels, scaled_size(size, short_side * scale), antialias=True)
        for mirrored in (False, True) if flip else (False,):
            seen = scaled.flip(-1) if mirrored else scaled
            logits = window_logits(model, seen, window, stride, batch_size)
            logits = resize(logits.flip(-1) if mirrored else logits, size)
            total = total + logits.softmax(dim=0)
    return total / (len(scales) * (2 if flip else 1))


def resize(maps: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Maps (C, h, w) bilinearly resized to (C, *size). As they are where they have this size."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=antialias)[0]
