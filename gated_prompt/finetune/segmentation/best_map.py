# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Validation after each epoch: the weights with the best mIoU are kept."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...training.checkpoints import trained_tensors
from ...training.loop import TrainerCallback
from .scores import score


class BestMap(TrainerCallback):
    """Scores a model on validation after each epoch, the start included, and keeps the weights of the best.

    `confusions` gives the confusion matrices (N, K, K) of the validation images, on all processes.
    """

    def __init__(self, model: nn.Module, confusions: Callable[[], Tensor]) -> None:
        self.model, self.measure = model, confusions
        self.best, self.mean_iou = 0, -math.inf
        self.curve: list[dict[str, float]] = []
        self.confusions = torch.empty(0)
        self.weights: dict[str, Tensor] = {}

    def after_epoch(self, epochs: int) -> dict[str, float]:
        confusions = self.measure()
        found = score(confusions.sum(0))
        self.curve.append({"epoch": epochs, "mean_iou": found.mean_iou, "pixel_accuracy": found.pixel_accuracy})
        if found.mean_iou > self.mean_iou or not self.weights:
            self.best, self.mean_iou, self.confusions = epochs, found.mean_iou, confusions
            self.weights = {n: t.detach().cpu().clone() for n, t in trained_tensors(self.model).items()}
        return {"validation_mean_iou": found.mean_iou}

    def restore(self) -> None:
        """Give the model the weights of the best epoch."""
        with torch.no_grad():
            for name, tensor in trained_tensors(self.model).items():
                tensor.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "mean_iou", "curve", "confusions", "weights")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
