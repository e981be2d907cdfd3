# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Losses of logits at the size of the label map: cross entropy, and Dice, and weights of rare classes."""

import torch.nn.functional as F
from torch import Tensor

from ...segmenter import IGNORE


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
