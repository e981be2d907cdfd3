# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Record gates, temperatures and selection ratios during training: `GateRecorder`."""

import json
import os
from pathlib import Path
from typing import Any, Self

from torch import nn
from transformers.trainer_callback import TrainerCallback

from ..errors import GatedPromptError
from ..inspect.readouts import find_adapter, gates, selection_ratios, temperatures

CURVES = ("gates", "temperatures", "selection_ratios")


class GateRecorder(TrainerCallback):
    """Records gates, temperatures and selection ratios of the active adapter during training.

    With transformers' Trainer, `Trainer(..., callbacks=[recorder])` records before the first step and then every
    `every` steps. In your own loop, call `recorder.record(model, step)` as often as you like. The model may be wrapped
    (DDP, accelerate).

    Args:
        every: steps between two records with the Trainer. On a GPU, each record waits for the step to finish.

    Attributes:
        steps: list (T,) of the steps recorded.
        gates: list (T, G).
        selection_ratios: list (T, G).
        temperatures: list (T, K).
        gated_blocks: indices (G,) of the gated blocks.
        blocks: indices (K,) of the blocks with prompts.

    Raises:
        GatedPromptError: `every` is below 1.

    Example:
        ```python
        recorder = gated_prompt.GateRecorder()
        for step in range(2):
            ...  # train
            recorder.record(model, step)
        recorder.save("gates.json")
        ```
    """

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise GatedPromptError(f"every is {every}. Expected at least 1.")
        self.every = every
        self.gated_blocks: list[int] = []
        self.blocks: list[int] = []
        self.steps: list[int] = []
        self.gates: list[list[float]] = []
        self.temperatures: list[list[float]] = []
        self.selection_ratios: list[list[float]] = []

    def record(self, model: nn.Module, step: int) -> None:
        """Record the values of this step.

        Records of this and later steps are dropped first, since a resumed run repeats them.

        Raises:
            GatedPromptError: the model has no adapter, or its blocks differ from those recorded so far.
        """
        _, adapter = find_adapter(model, None)
        gated, blocks = list(adapter.gate_rows), list(adapter.blocks)
        kept = sum(earlier < step for earlier in self.steps)
        if kept and (gated, blocks) != (self.gated_blocks, self.blocks):
            raise GatedPromptError(
                f"this adapter has gates at blocks {gated} and prompts at {blocks}, but those recorded so far at "
                f"{self.gated_blocks} and {self.blocks}. Use one GateRecorder per adapter."
            )
        self.gated_blocks, self.blocks = gated, blocks
        values = (gates(model), temperatures(model), selection_ratios(model))
        for name, value in zip(CURVES, values, strict=True):
            getattr(self, name)[kept:] = [value.tolist()]
        self.steps[kept:] = [step]

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Record the initial values."""
        self.record(model, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Record every `every` steps."""
        if state.global_step % self.every == 0:
            self.record(model, state.global_step)

    def to_dict(self) -> dict[str, Any]:
        """Return everything recorded, as lists by name."""
        return {name: getattr(self, name) for name in ("every", "gated_blocks", "blocks", "steps", *CURVES)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict()` as JSON, atomically. With several processes, call it in one only."""
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        try:
            partial.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            GatedPromptError: the file is missing or is not such a recording.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            recorder = cls(values["every"])
            widths = {"gates": "gated_blocks", "selection_ratios": "gated_blocks", "temperatures": "blocks"}
            for name in recorder.to_dict():
                setattr(recorder, name, values[name])
            for name, blocks in widths.items():
                rows, width = values[name], len(values[blocks])
                if len(rows) != len(values["steps"]) or any(len(row) != width for row in rows):
                    raise ValueError(f"{name} must have one row of {width} values per step")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GatedPromptError(
                f"{path} is not a recording of gates ({error!r}). Give a file that save() wrote."
            ) from error
        return recorder
