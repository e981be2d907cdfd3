# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The training loop of all studies: Adam, a warm-up and a cosine, cross-entropy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from .tasks import Part

SCORED_AT_ONCE = 100


class Kept(Part):
    """Tokens (N, T, D) in the place of pixels, for a model that starts at a block."""

    def batch(self, index: Tensor) -> Tensor:
        return self.pixels[index].float()


@dataclass(frozen=True)
class Loop:
    """`warmup` counts epochs in which the rate rises; `seed` orders the images."""

    epochs: int
    warmup: float
    batch_size: int
    seed: int


def fit(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    part: Part,
    loop: Loop,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[float]:
    """Train and return the mean loss of each epoch; `after_epoch` gets its number, from 1."""
    optimizer = torch.optim.Adam(groups)
    steps = -(-len(part) // loop.batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(loop.warmup * steps), loop.epochs * steps)
    draw = torch.Generator().manual_seed(loop.seed)
    losses = []
    for epoch in range(1, loop.epochs + 1):
        model.train()
        total = 0.0
        for index in torch.randperm(len(part), generator=draw).split(loop.batch_size):
            loss = F.cross_entropy(logits_of(model(part.batch(index))), part.labels[index])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(loss.detach()) * len(index) / len(part)
        losses.append(round(total, 4))
        after_epoch(epoch)
    return losses


def logits_of(output: Any) -> Tensor:
    """The logits of a `Reader`, or of a model of transformers."""
    logits: Tensor = getattr(output, "logits", output)
    return logits


@torch.no_grad()
def predict(model: nn.Module, part: Part) -> Tensor:
    """Logits (N, classes)."""
    model.eval()
    index = torch.arange(len(part)).split(SCORED_AT_ONCE)
    return torch.cat([logits_of(model(part.batch(i))) for i in index])


def accuracy(model: nn.Module, part: Part) -> float:
    """Share of images that are classified correctly."""
    return round(float((predict(model, part).argmax(1) == part.labels).float().mean()), 5)
