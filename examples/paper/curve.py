# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What happens from epoch to epoch: loss, learning rate, accuracies where asked, and whether a run diverges."""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gated_prompt.training.loop import TrainerCallback


class Curve(TrainerCallback):
    """Records each epoch, and ends a run whose loss or parameters are no longer finite.

    Attributes:
        rows: One for each epoch: "epoch" from 1, mean "loss", "learning_rate", and what `score` returns.
        diverged: The epoch in which the loss or a parameter became infinite or NaN. None if none did.
    """

    def __init__(
        self, accelerator: Accelerator, optimizer: torch.optim.Optimizer, score: Callable[[], dict[str, float]] | None
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.diverged: int | None = None
        self._accelerator, self._optimizer, self._score = accelerator, optimizer, score
        self._rate = 0.0
        self._total: float | Tensor = 0.0
        self._batches = 0

    def add(self, loss: Tensor) -> Tensor:
        """Count the loss of a batch; returns it."""
        self._rate = self._optimizer.param_groups[0]["lr"]
        self._total = self._total + loss.detach()  # stays on the device
        self._batches += 1
        return loss

    def after_epoch(self, epochs: int) -> dict[str, float]:
        total = torch.as_tensor(self._total, dtype=torch.float32, device=self._accelerator.device)
        loss = float(self._accelerator.reduce(total / max(self._batches, 1), "mean"))
        self._total, self._batches = 0.0, 0
        if not math.isfinite(loss) or not self._finite():
            self.diverged, self.done = epochs, True
        row = {"epoch": epochs, "loss": loss if math.isfinite(loss) else None, "learning_rate": self._rate}
        scores = self._score() if self._score is not None and not self.done else {}
        self.rows.append({**row, **scores})
        return scores

    def _finite(self) -> bool:
        groups = self._optimizer.param_groups
        return all(bool(torch.isfinite(parameter).all()) for group in groups for parameter in group["params"])

    def best(self) -> dict[str, Any] | None:
        """The epoch with the best validation accuracy, of equals the first, as the official code logs it."""
        scored = [row for row in self.rows if "validation" in row]
        return max(scored, key=lambda row: (row["validation"], -row["epoch"])) if scored else None

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "diverged": self.diverged, "total": float(self._total), "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.diverged = list(state["rows"]), state["diverged"]
        self.done = self.diverged is not None
        self._total, self._batches = state["total"], state["batches"]
