# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A linear map from the features of a patch to classes, the shares that it is fitted to, and losses of logits."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError
from ...segmenter import IGNORE


def class_shares(labels: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """Shares (h, w, K) of the area of each patch, less than 1 in all where pixels are ignored.

    `labels` (H, W) may have any size: its pixels are spread evenly over the h x w patches.
    """
    shares = torch.zeros(num_classes, *grid)
    for label in labels.unique().tolist():
        if label < num_classes:
            inside = (labels == label).float()[None, None]
            shares[label] = F.interpolate(inside, grid, mode="area")[0, 0]
    return shares.permute(1, 2, 0)


RATE, BATCH, EPOCHS = 0.002, 512, 10
LEAST_STEPS = 200
MOST_PATCHES = 150_000  # most patches of one fit. Five blocks of width 384 take 1.2 GB of features


@dataclass(frozen=True)
class LinearMap:
    """Weight (K, F) and bias (K,) on the features of these blocks as they are."""

    blocks: tuple[int, ...]
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (K, h, w) of features (h, w, F)."""
        return (features @ self.weight.T + self.bias).permute(2, 0, 1)


def fit_linear_map(
    blocks: tuple[int, ...], features: Tensor, shares: Tensor, seed: int = 0, class_weights: Tensor | None = None
) -> LinearMap:
    """Minimise the cross entropy to the shares of the classes, by AdamW with a cosine from `RATE` to 0.

    Features are standardised. What is ignored in a patch takes its part of the patch's weight with it. `class_weights`
    (K,) are factors on the shares. A class without a pixel never wins.

    Args:
        blocks: those that the features come from.
        features: float32 (M, F), standardised in place.
        shares: float32 (M, K), whose rows sum to at most 1.
        seed: of the order in which patches are seen.

    Raises:
        DataError: no pixel is labelled.
    """
    present = shares.sum(0) > 0
    if not bool(present.any()):
        raise DataError("no pixel of the training images is labelled, so there is nothing to fit")
    center, scale = features.mean(0), features.std(0, correction=0)
    scale[scale < 1e-6 * scale.max().clamp(min=1e-12)] = 1
    features.sub_(center).div_(scale)
    targets = shares if class_weights is None else shares * class_weights
    weight = torch.zeros(shares.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(shares.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], RATE)
    size = min(BATCH, len(features))
    steps = max(LEAST_STEPS, EPOCHS * len(features) // size)
    order, generator = torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            if len(order) < size:
                order = torch.cat((order, torch.randperm(len(features), generator=generator)))
            rows, order = order[:size], order[size:]
            wanted = targets[rows]
            logs = torch.log_softmax(features[rows] @ weight.T + bias, 1)
            loss = -(logs * wanted).sum() / wanted.sum().clamp(min=1e-6)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = weight.detach() / scale
    offset = bias.detach() - found @ center
    offset[~present] = float(offset.min()) - 1e4  # lower than any logit of a class that was seen
    return LinearMap(blocks, found, offset)


def mask_loss(logits: Tensor, labels: Tensor, dice: bool, class_weights: Tensor | None) -> Tensor:
    """Cross entropy of logits (B, K, h, w), upsampled to labels (B, H, W), plus Dice if asked for.

    A batch without labelled pixels has the loss 0.
    """
    large = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    labelled = labels != IGNORE
    weights = None if class_weights is None else class_weights.to(large)
    total = F.cross_entropy(large, labels, weights, ignore_index=IGNORE, reduction="sum")
    size = labelled.sum() if weights is None else weights[labels[labelled]].sum()
    loss = total / size.clamp(min=1e-6)
    return loss + dice_loss(large, labels, labelled) if dice else loss


def dice_loss(logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """1 - the mean over the classes that occur of 2 |p y| / (|p| + |y|) (Milletari et al., 2016, without squares)."""
    shares = logits.softmax(1) * labelled[:, None]
    truth = F.one_hot(labels.masked_fill(~labelled, 0), logits.shape[1]).permute(0, 3, 1, 2) * labelled[:, None]
    inside = (shares * truth).sum((0, 2, 3))
    both = shares.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    occurs = truth.sum((0, 2, 3)) > 0
    scores = 2 * inside[occurs] / both[occurs]
    return 1 - scores.mean() if len(scores) else logits.sum() * 0


def rare_class_weights(counts: Tensor) -> Tensor:
    """Weights (K,) from pixels (N, K): the square root of N / (K n_k), so that rare classes count more.

    Without the root a class of a thousandth of the pixels would outweigh all others.
    """
    pixels = counts.sum(0).double().clamp(min=1)
    return (pixels.sum() / (len(pixels) * pixels)).sqrt().float()
