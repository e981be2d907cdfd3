# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""An exponential moving average of the trainable parameters, built on torch's `AveragedModel`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers.trainer_callback import TrainerCallback

from ..errors import GatedPromptError, UnsupportedOperationError


class AveragedAdapter:
    """Exponential moving average of a model's trainable parameters. The frozen base is neither copied nor read.

    If p_t are the parameters at update t, the average is a_1 = p_1, a_t = decay a_{t-1} + (1 - decay) p_t (SPT, arXiv
    2402.02382, trains prompts with decay 0.9999). It is kept in float32 or better. It works with accelerate's
    `register_for_checkpointing`.

    Args:
        model: a model with at least one trainable parameter. It is read at each update.
        decay: in [0, 1). The average spans about 1 / (1 - decay) updates.

    Raises:
        GatedPromptError: nothing is trainable, or the decay is outside its range.

    Example:
        ```python
        average = gated_prompt.AveragedAdapter(model, decay=0.999)
        for batch in train_loader:
            ...  # an optimizer step
            average.update()
        with average.applied():  # evaluate and save the averaged parameters
            gated_prompt.save(model, "averaged")
        ```
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise GatedPromptError(f"decay is {decay}. Expected a number in [0, 1).")
        self._model = model
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not self._names:
            raise GatedPromptError("no parameter of the model is trainable, so there is nothing to average")
        self._average = AveragedModel(self._precise(), multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._average.requires_grad_(False)

    def update(self) -> None:
        """Add the current parameters to the average. Call it after each optimizer step."""
        self._average.update_parameters(self._precise())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averaged parameters inside the `with` block. Restore the model's own, bit for bit, at its end."""
        own = [parameter.detach().clone() for parameter in self._current()]
        self.copy_to_model()
        try:
            yield
        finally:
            self._fill(own)

    def copy_to_model(self) -> None:
        """Replace the model's parameters with the averaged ones permanently."""
        self._fill(list(self._average.module.parameters()))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averaged parameters by name, in float32 or better, and the number of updates as "n_averaged"."""
        values = (parameter.detach() for parameter in self._average.module.parameters())
        return {"n_averaged": self._average.n_averaged, **dict(zip(self._names, values, strict=True))}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore the average from a `state_dict`.

        Raises:
            GatedPromptError: names or shapes of its parameters differ from the model's.
        """
        own = self.state_dict()
        wrong = sorted(
            name for name in own.keys() | state.keys()
            if name not in own or name not in state or own[name].shape != state[name].shape
        )  # fmt: skip
        if wrong:
            raise GatedPromptError(f"the saved average and the model differ in parameters: {', '.join(wrong[:5])}")
        for name, value in own.items():
            value.copy_(state[name])

    def _current(self) -> list[nn.Parameter]:
        """Look up the averaged parameters anew: PEFT replaces them when it moves or casts them."""
        found = dict(self._model.named_parameters())
        return [found[name] for name in self._names]

    def _precise(self) -> nn.ParameterList:
        """The averaged parameters, at least in float32: half precision would round small steps of the average away."""
        current = (parameter.detach() for parameter in self._current())
        return nn.ParameterList(p.float() if p.element_size() < 4 else p for p in current)

    def _fill(self, values: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._current(), values, strict=True):
                parameter.copy_(value)


class AveragingCallback(TrainerCallback):
    """Callback for transformers' Trainer that averages after each step, and ends with the average in the model.

    Evaluations and checkpoints during training use the original parameters. A resumed run starts a new average.

    Args:
        decay: as for `AveragedAdapter`, which is in `average` once training has started.

    Raises:
        UnsupportedOperationError: training starts with `load_best_model_at_end`, which would end with another model.

    Example:
        ```python
        from transformers import Trainer

        trainer = Trainer(model, callbacks=[gated_prompt.AveragingCallback(decay=0.99)])
        ```
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.average: AveragedAdapter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Start the average from the current parameters."""
        if args.load_best_model_at_end:
            raise UnsupportedOperationError(
                "AveragingCallback and load_best_model_at_end would end training with different models. Use only one."
            )
        self.average = AveragedAdapter(model, self.decay)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Update the average."""
        if self.average is not None:
            self.average.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Copy the average to the model."""
        if self.average is not None:
            self.average.copy_to_model()
