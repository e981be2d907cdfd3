"""A training run that is stopped after a checkpoint, as by Ctrl+C."""

from collections.abc import Callable

import pretraining
import pytest
from accelerate.state import AcceleratorState


def stopped_after(checkpoint: str, train: Callable[[], None]) -> None:
    """Call `train` and stop it when it has saved this checkpoint; the next run starts with a fresh Accelerator."""
    save = pretraining.save_checkpoint

    def save_and_die(accelerator, folder, name):
        save(accelerator, folder, name)
        if name == checkpoint:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train()
    AcceleratorState._reset_state(reset_partial_state=True)
