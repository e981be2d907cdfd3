# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The most confident mistakes of a model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .figures import thumbnail
from .image_set import CLASSES, LABELS, ImageSet

SHOWN = 24


@dataclass(frozen=True)
class Mistake:
    """A thumbnail with the true and the predicted class."""

    name: str
    picture: str
    truth: str
    said: str


def worst_mistakes(data: ImageSet, scores: Tensor) -> list[Mistake]:
    """Wrong answers in the order of their confidence; for numbers the largest errors."""
    if data.problem == CLASSES:
        sure, said = scores.softmax(-1).max(-1)
        amount = torch.where(said == data.targets, -1.0, sure)
        texts = [
            (data.names[int(true)], f"{data.names[int(index)]} ({100 * float(share):.0f} %)")
            for true, index, share in zip(data.targets, said, sure, strict=True)
        ]
    elif data.problem == LABELS:
        shares = scores.sigmoid()
        gaps = (shares - data.targets).abs()
        amount, where = gaps.max(-1)
        amount = torch.where(amount < 0.5, -1.0, amount)
        texts = [
            (
                f"{'is' if data.targets[row, column] else 'is not'} {data.names[int(column)]}",
                f"{100 * float(shares[row, column]):.0f} %",
            )
            for row, column in enumerate(where)
        ]
    else:
        amount = (scores - data.targets).abs()[:, 0]
        texts = [
            (f"{float(true[0]):.4g}", f"{float(score[0]):.4g}")
            for true, score in zip(data.targets, scores, strict=True)
        ]
    order = [int(index) for index in amount.argsort(descending=True, stable=True)[:SHOWN] if amount[index] >= 0]
    return [Mistake(data.pictures[i].name, thumbnail(data.pictures[i].decode()), *texts[i]) for i in order]
