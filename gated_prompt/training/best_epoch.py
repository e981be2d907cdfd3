# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Validation after each epoch: the best one is kept, and a run that no longer improves stops."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .averaging import AveragedAdapter
from .checkpoints import trained_tensors
from .loop import TrainerCallback

STATE = ("score_to_maximize", "best", "curve", "scores", "weights", "done")  # of a BestEpoch, in each checkpoint


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


@dataclass(frozen=True)
class Validation:
    """How good a model is on the validation images.

    Attributes:
        scores: what it answers for each of the N images, on the CPU: logits, numbers, or confusion matrices.
        score_to_maximize: what epochs and learning rates are compared by.
        measures: what a report shows of it, by name.
    """

    scores: Tensor
    score_to_maximize: float
    measures: Mapping[str, float] = field(default_factory=dict)


class BestEpoch(AverageWeights):
    """Scores a model on validation after each epoch, the start included, and keeps the weights of the best.

    With an average of the weights it is the average that is scored and kept.

    Args:
        model: the model, unwrapped.
        validate: scores a model, which is wrapped as the accelerator prepared it, on all processes.
        patience: epochs without a better validation before `done`.
        decay: of the average. None means that nothing is averaged.
    """

    def __init__(
        self, model: nn.Module, validate: Callable[[nn.Module], Validation], patience: int, decay: float | None
    ) -> None:
        super().__init__(model, decay)
        self.model, self.validate, self.patience = model, validate, patience
        self.wrapped = model  # as the accelerator prepared it
        self.score_to_maximize, self.best = -math.inf, 0
        self.curve: list[dict[str, float]] = []  # epoch and measures
        self.scores = torch.empty(0)
        self.weights: dict[str, Tensor] = {}
        self.done = False

    def after_epoch(self, epochs: int) -> dict[str, float]:
        with self.average.applied() if self.average is not None and epochs else nullcontext():
            found = self.validate(self.wrapped)
            # A run whose numbers are no longer finite is worse than any other, in a race as well.
            value = found.score_to_maximize if math.isfinite(found.score_to_maximize) else -math.inf
            self.curve.append({"epoch": epochs, **found.measures})
            if value > self.score_to_maximize or not self.weights:
                self.score_to_maximize, self.best, self.scores = value, epochs, found.scores
                tensors = trained_tensors(self.model)
                self.weights = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self.done = epochs - self.best >= self.patience
        return {f"validation_{name}": value for name, value in found.measures.items()}

    def restore(self) -> None:
        """Give the model the weights of the best epoch."""
        with torch.no_grad():
            for name, tensor in trained_tensors(self.model).items():
                tensor.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE} | super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state[name])
        super().load_state_dict(state)
