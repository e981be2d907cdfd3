# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Heads on the frozen backbone, trained as the runs train theirs: they choose the head's rate and bound its worth."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from .grid import EPOCHS, SEEDS
from .images import Part, Task
from .reader import AttentiveHead, LinearHead, Reader
from .training import BATCH, scores

HEAD_RATES = (0.001, 0.003, 0.01, 0.03)
QUERIES = 8


@torch.no_grad()
def last_tokens(task: Task, backbone: Path, block: int) -> dict[str, torch.Tensor]:
    """Normed tokens (N, 1 + patches, D) after `block` blocks, by part, in half precision."""
    model = Reader(backbone, block, task.num_classes).eval()

    def tokens(part: Part) -> torch.Tensor:
        batches = []
        for index in torch.arange(len(part.labels)).split(100):
            with model.autocast():
                states = model.backbone(part.batch(index)).last_hidden_state
            batches.append(states.half())
        return torch.cat(batches)

    return {name: tokens(part) for name, part in task.parts.items()}


def train_head(head: nn.Module, tokens: torch.Tensor, labels: torch.Tensor, rate: float, seed: int) -> None:
    """Train with the recipe of the runs: Adam, a cosine over `EPOCHS`, the same batches."""
    optimizer = torch.optim.Adam(head.parameters(), rate)
    steps = -(-len(labels) // BATCH)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps, EPOCHS * steps)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(labels), generator=draw).split(BATCH):
            F.cross_entropy(head(tokens[index].float()), labels[index]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def frozen_heads(task: Task, backbone: Path, block: int) -> dict[str, Any]:
    """For the linear and the attentive head on one block: the chosen rate, and accuracies of three seeds with it."""
    tokens = last_tokens(task, backbone, block)
    width, labels = tokens["train"].shape[-1], labels_of(task)
    kinds: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: LinearHead(width, task.num_classes),
        "attentive": lambda: AttentiveHead(width, task.num_classes, QUERIES),
    }
    return {"block": block, **{name: head_race(make, tokens, labels) for name, make in kinds.items()}}


def standardised_head(task: Task, features: dict[str, torch.Tensor], block: int) -> dict[str, Any]:
    """The same for a linear head whose inputs have mean 0 and deviation 1 over the training images.

    `features`: those of `features.block_features`.
    """
    inputs = {part: values[:, block - 1].float() for part, values in features.items()}
    return {"block": block, "linear": standardised_race(inputs, labels_of(task), task.num_classes)}


def standardised_race(
    inputs: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor], num_classes: int
) -> dict[str, Any]:
    """`head_race` of a linear head on head inputs (N, 2 D) by part, standardised."""
    center, scale = inputs["train"].mean(0), inputs["train"].std(0) + 1e-6
    width = inputs["train"].shape[-1] // 2

    def make() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (2, width)), LinearHead(width, num_classes))

    return head_race(make, {part: (values - center) / scale for part, values in inputs.items()}, labels)


def labels_of(task: Task) -> dict[str, torch.Tensor]:
    """The classes by part."""
    return {part: images.labels for part, images in task.parts.items()}


def head_race(
    make: Callable[[], nn.Module], inputs: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The rate that is best on the validation images with the first seed, and the accuracies of all seeds with it."""

    def run(rate: float, seed: int) -> dict[str, tuple[float, float]]:
        torch.manual_seed(seed)
        head = make()
        train_head(head, inputs["train"], labels["train"], rate, seed)
        with torch.no_grad():
            logits = {
                part: torch.cat([head(batch.float()) for batch in inputs[part].split(500)]) for part in ("val", "test")
            }
        return {part: scores(values, labels[part]) for part, values in logits.items()}

    tried = {rate: run(rate, SEEDS[0]) for rate in HEAD_RATES}
    rate = max(tried, key=lambda rate: (tried[rate]["val"][0], -tried[rate]["val"][1]))
    runs = [tried[rate] if seed == SEEDS[0] else run(rate, seed) for seed in SEEDS]
    return {
        "rate": rate,
        "tried": {f"{rate:g}": result["val"] for rate, result in tried.items()},
        "val": [result["val"][0] for result in runs],
        "test": [result["test"][0] for result in runs],
    }
