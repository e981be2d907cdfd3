# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The backbone cut after k blocks, with a head on its tokens."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

from .features import head_input


class LinearHead(nn.Module):
    """What `Dinov2ForImageClassification` has: a Linear on CLS and mean patch token."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # A fitted head undoes the mean and scale of its features, and bfloat16 may round away what is left.
        with torch.autocast(tokens.device.type, enabled=False):
            logits: torch.Tensor = self.linear(head_input(tokens).float())
        return logits


class AttentiveHead(nn.Module):
    """M learned queries pool the tokens, which are their own keys (Efficient Probing, ICLR 2026).

    One value projection is split over the queries: query m pools its own D / M channels of the values.
    """

    def __init__(self, width: int, num_classes: int, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.value = nn.Linear(width, width, bias=False)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        weights = F.softmax(tokens @ self.queries.T * tokens.shape[-1] ** -0.5, dim=1)  # (B, N, M)
        values = self.value(tokens).unflatten(-1, (len(self.queries), -1))  # (B, N, M, D / M)
        pooled: torch.Tensor = (weights[..., None] * values).sum(1).flatten(1)
        return self.classifier(pooled)


class Reader(nn.Module):
    """Logits (B, classes) from pixels (B, 3, H, W).

    `in_bfloat16`: matrix products of the backbone in bfloat16 (autocast), everything else in float32. On processors
    with bfloat16 instructions this takes half the time. It is not for features that hardly vary beside
    their mean, such as MAE's: their differences are smaller than bfloat16's rounding.
    """

    def __init__(
        self, backbone: Path, depth: int, num_classes: int, queries: int = 0, in_bfloat16: bool = True
    ) -> None:
        super().__init__()
        self.in_bfloat16 = in_bfloat16
        self.backbone = AutoModel.from_pretrained(backbone, num_hidden_layers=depth, dtype=torch.float32)
        if hasattr(self.backbone, "pooler"):
            self.backbone.pooler = None  # new in the small ViTs, and read by nobody
        width = self.backbone.config.hidden_size
        self.classifier = AttentiveHead(width, num_classes, queries) if queries else LinearHead(width, num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return self.classifier(self.backbone(pixel_values).last_hidden_state).float()

    def autocast(self) -> torch.autocast:
        """The context in which backbone and head compute."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16)
