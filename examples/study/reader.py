# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A backbone with a linear head on the tokens of one block or several, and the head that starts as their probe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gated_prompt.heads import load_backbone

from .probe import fit_path
from .tasks import Part
from .training import SCORED_AT_ONCE


def head_input(tokens: Tensor) -> Tensor:
    """CLS beside the mean of the patches, (B, 2 D), of normed tokens (B, 1 + N, D)."""
    return torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1)


class Reader(nn.Module):
    """Logits (B, classes) from pixels (B, 3, H, W), read after some blocks; blocks above the highest are not loaded.

    The head sees `(features - center) / scale`, which are 0 and 1 until `start_head` sets them.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, backbone: Path, blocks: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.backbone = load_backbone(str(backbone), num_hidden_layers=1 + max(blocks))
        width = 2 * self.backbone.config.hidden_size * len(self.blocks)
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.classifier = nn.Linear(width, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.backbone(pixel_values, output_hidden_states=True).hidden_states
        read = [head_input(self.backbone.layernorm(states[1 + block])) for block in self.blocks]
        logits: Tensor = self.classifier((torch.cat(read, dim=1) - self.center) / self.scale)
        return logits


def reader_of(model: nn.Module) -> Reader:
    """The `Reader` below an adapter."""
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    if not isinstance(base, Reader):
        raise TypeError(f"{type(base).__name__} is not a Reader")
    return base


def start_head(model: nn.Module, part: Part, num_classes: int, strength: float, standardise: bool) -> None:
    """Set the head to the probe of what it reads of these images, with the untrained adapter in place.

    With `standardise` the head trains on standardised features; otherwise on the features as they are.
    """
    base = reader_of(model)
    base.center.zero_()
    base.scale.fill_(1)
    seen: list[Tensor] = []
    handle = base.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model.eval()
        with torch.no_grad():
            for index in torch.arange(len(part)).split(SCORED_AT_ONCE):
                model(part.batch(index))
    finally:
        handle.remove()
    features = torch.cat(seen)
    ((weight, bias),) = fit_path(features, part.labels, num_classes, [strength])
    if standardise:
        base.center.copy_(features.mean(0))
        base.scale.copy_(features.std(0, correction=0).clamp(min=1e-6))
    head: Any = base.classifier
    linear = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
    with torch.no_grad():
        linear.weight.copy_(weight * base.scale)
        linear.bias.copy_(bias + weight @ base.center)
