# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Validation after each epoch: the best one is kept, and a run that no longer improves stops."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..training.averaging import AveragedAdapter
from ..training.checkpoints import trained_tensors
from ..training.loop import TrainerCallback
from .metrics import Measure


class AverageWeights(TrainerCallback):
    """Keeps a moving average of the weights. Without a `decay` it does nothing."""

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.average = None if decay is None else AveragedAdapter(model, decay)

    def after_step(self) -> None:
        if self.average is not None:
            self.average.update()

    def restore(self) -> None:
        """Give the model the average, if there were steps."""
        if self.average is not None and int(self.average.state_dict()["n_averaged"]):
            self.average.copy_to_model()

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict() if self.average is not None else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.load_state_dict(state["average"])


class BestEpoch(AverageWeights):
    """Scores a model on validation after each epoch, the start included, and keeps the weights of the best.

    With an average of the weights it is the average that is scored and kept.

    Args:
        model: the model, unwrapped.
        score: logits or numbers (N, K) of the validation images by a model, on all processes.
        loss: gives the loss of such scores.
        targets: (N,) or (N, K).
        patience: epochs without a better measure before `done`.
        decay: of the average. None: no average.
    """

    def __init__(
        self,
        model: nn.Module,
        score: Callable[[nn.Module], Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
        targets: Tensor,
        measure: Measure,
        patience: int,
        decay: float | None,
    ) -> None:
        super().__init__(model, decay)
        self.model, self.score, self.loss, self.targets, self.measure = model, score, loss, targets, measure
        self.wrapped = model  # as the accelerator prepared it
        self.patience = patience
        self.gain, self.best = -math.inf, 0
        self.curve: list[dict[str, float]] = []  # epoch, loss and measure
        self.scores = torch.empty(0)
        self.weights: dict[str, Tensor] = {}
        self.done = False

    def after_epoch(self, epochs: int) -> dict[str, float]:
        with self.average.applied() if self.average is not None and epochs else nullcontext():
            scores = self.score(self.wrapped)
            gain, loss = self.measure.gain(scores, self.targets), float(self.loss(scores, self.targets))
            # A run whose numbers are no longer finite is worse than any other, in a race as well.
            gain, loss = gain if math.isfinite(gain) else -math.inf, loss if math.isfinite(loss) else math.inf
            found = {"loss": loss, self.measure.name: self.measure(scores, self.targets)}
            self.curve.append({"epoch": epochs, **found})
            if gain > self.gain or not self.weights:
                self.gain, self.best, self.scores = gain, epochs, scores
                tensors = trained_tensors(self.model)
                self.weights = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self.done = epochs - self.best >= self.patience
        return {f"validation_{name}": value for name, value in found.items()}

    def restore(self) -> None:
        """Give the model the weights of the best epoch."""
        with torch.no_grad():
            for name, tensor in trained_tensors(self.model).items():
                tensor.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Any]:
        state = {k: getattr(self, k) for k in ("gain", "best", "curve", "scores", "weights", "done")}
        return state | super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("gain", "best", "curve", "scores", "weights", "done"):
            setattr(self, name, state[name])
        super().load_state_dict(state)
