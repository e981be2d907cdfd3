# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What all studies train: a backbone that is read after some blocks, by Adam with a warm-up and a cosine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from gated_prompt.heads import TokenClassifier, load_backbone
from gated_prompt.starts.linear_probe import PROBLEMS, fit_path

from .tasks import Part

SCORED_AT_ONCE = 100


def reader(backbone: Path, blocks: Sequence[int], num_classes: int) -> TokenClassifier:
    """A linear head on CLS and mean patch after these blocks. Those above the highest are not loaded."""
    model = load_backbone(str(backbone), num_hidden_layers=1 + max(blocks))
    return TokenClassifier(model, num_classes, reads="both", blocks=blocks)


def start_head(model: nn.Module, part: Part, l2: float) -> None:
    """Set the head to the probe of what it reads of these images, with the untrained adapter in place.

    It does what `initialize_head` does for pixels, also for kept tokens.
    """
    head: Any = next(m for name, m in model.named_modules() if name.rpartition(".")[2] == "classifier")
    linear = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
    seen: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        predict(model, part)
    finally:
        handle.remove()
    ((weight, bias),) = fit_path(torch.cat(seen), part.labels, linear.out_features, PROBLEMS[0], [l2])
    with torch.no_grad():
        linear.weight.copy_(weight[0])
        linear.bias.copy_(bias[0])


def groups(model: nn.Module, rate: float, head_rate: float) -> list[dict[str, Any]]:
    """Optimizer groups: the head, and everything else that is trained."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if "classifier" in name], "lr": head_rate},
        {"params": [p for name, p in named if "classifier" not in name], "lr": rate},
    ]


class Kept(Part):
    """Tokens (N, T, D) in the place of pixels, for a model that starts at a block."""

    def batch(self, index: Tensor) -> Tensor:
        return self.pixels[index].float()


@dataclass(frozen=True)
class Loop:
    """`warmup` counts epochs in which the rate rises. `seed` orders the images."""

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
    """Train and return the mean loss of each epoch. `after_epoch` gets its number, from 1."""
    optimizer = torch.optim.Adam(groups)
    steps = -(-len(part) // loop.batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(loop.warmup * steps), loop.epochs * steps)
    draw = torch.Generator().manual_seed(loop.seed)
    losses = []
    for epoch in range(1, loop.epochs + 1):
        model.train()
        total = 0.0
        for index in torch.randperm(len(part), generator=draw).split(loop.batch_size):
            loss = F.cross_entropy(model(part.batch(index)).logits, part.labels[index])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(loss.detach()) * len(index) / len(part)
        losses.append(round(total, 4))
        after_epoch(epoch)
    return losses


@torch.no_grad()
def predict(model: nn.Module, part: Part) -> Tensor:
    """Logits (N, classes)."""
    model.eval()
    index = torch.arange(len(part)).split(SCORED_AT_ONCE)
    return torch.cat([model(part.batch(i)).logits for i in index])


def accuracy(model: nn.Module, part: Part) -> float:
    """Share of images that are classified correctly."""
    return round(float((predict(model, part).argmax(1) == part.labels).float().mean()), 5)
