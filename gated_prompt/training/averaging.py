# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""An exponential moving average of what is trained, by torch's `AveragedModel`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers.trainer_callback import TrainerCallback

from ..errors import GatedPromptError, UnsupportedOperationError


class AveragedAdapter:
    """Averages the trainable parameters of a model; the frozen base is neither copied nor looked at.

    ```python
    average = AveragedAdapter(model, decay=0.999)
    for batch in loader:
        ...
        optimizer.step()
        average.update()
    with average.applied():  # evaluate and save what was averaged
        gated_prompt.save(model, folder)
    ```

    With p_1, p_2, ... the parameters at each update the average is a_1 = p_1, a_t = decay a_{t-1} + (1 - decay) p_t
    (SPT, arXiv 2402.02382, trains prompts with decay 0.9999). It can be given to accelerate's
    `register_for_checkpointing`.

    Args:
        model: with at least one trainable parameter; kept, and looked at in each update.
        decay: in [0, 1). 1 / (1 - decay) updates is about as far as it looks back.

    Raises:
        GatedPromptError: nothing is trainable, or the decay is outside its range.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise GatedPromptError(f"decay is {decay}; it must lie in [0, 1)")
        self._model = model
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not self._names:
            raise GatedPromptError("no parameter of the model is trainable, so there is nothing to average")
        self._average = AveragedModel(nn.ParameterList(self._live()), multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._average.requires_grad_(False)

    def update(self) -> None:
        """Take in the parameters as they are now; call it after each step of the optimizer."""
        self._average.update_parameters(nn.ParameterList(self._live()))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While open, the model has the averaged parameters; on leaving, its own again, bit for bit."""
        own = [parameter.detach().clone() for parameter in self._live()]
        self.copy_to_model()
        try:
            yield
        finally:
            self._fill(own)

    def copy_to_model(self) -> None:
        """Give the model the averaged parameters for good."""
        self._fill(list(self._average.module.parameters()))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged parameters by name, and under "n_averaged" the number of updates."""
        values = (parameter.detach() for parameter in self._average.module.parameters())
        return {"n_averaged": self._average.n_averaged, **dict(zip(self._names, values, strict=True))}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state_dict`.

        Raises:
            GatedPromptError: it belongs to other parameters.
        """
        own = self.state_dict()
        wrong = sorted(
            name for name in own.keys() | state.keys()
            if name not in own or name not in state or own[name].shape != state[name].shape
        )  # fmt: skip
        if wrong:
            raise GatedPromptError(f"the saved average has other parameters than the model: {', '.join(wrong[:5])}")
        for name, value in own.items():
            value.copy_(state[name])

    def _live(self) -> list[nn.Parameter]:
        """The parameters that are averaged, looked up each time: PEFT makes new ones when it moves or casts them."""
        found = dict(self._model.named_parameters())
        return [found[name] for name in self._names]

    def _fill(self, values: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._live(), values, strict=True):
                parameter.copy_(value)


class AveragingCallback(TrainerCallback):
    """For transformers' Trainer: averages after each step, and gives the model the average when training ends.

    Evaluations and checkpoints during training are of the parameters themselves. A resumed run starts a new average.

    Args:
        decay: as for `AveragedAdapter`, which is in `average` once training has begun.

    Raises:
        UnsupportedOperationError: when training begins with `load_best_model_at_end`, which asks for another model.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.average: AveragedAdapter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Start from the parameters as they are."""
        if args.load_best_model_at_end:
            raise UnsupportedOperationError(
                "AveragingCallback and load_best_model_at_end name two models to end with; use one of them"
            )
        self.average = AveragedAdapter(model, self.decay)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Take in one step."""
        if self.average is not None:
            self.average.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Leave the average in the model."""
        if self.average is not None:
            self.average.copy_to_model()
