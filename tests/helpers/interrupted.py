"""Training runs in this process, also such that are stopped as by Ctrl+C; each starts with a fresh Accelerator."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones import pretraining
from gated_prompt.errors import DataError, GatedPromptError
from paper.records import FAILURE, failure_is_noted

from .accelerate_state import fresh


def stopped_after(checkpoint: str, train: Callable[[], object]) -> None:
    """Call `train`, one of the scripts that make backbones, and stop it when it has saved this checkpoint."""
    save = pretraining.save_checkpoint

    def save_and_die(accelerator, folder, name, *more):
        save(accelerator, folder, name, *more)
        if name == checkpoint:
            raise KeyboardInterrupt

    _stopped(pretraining, "save_checkpoint", save_and_die, train)


def stopped_after_steps(limit: int, train: Callable[[], object]) -> None:
    """Call `train` and stop it where SGD would take one step more than `limit`."""
    count, step = 0, torch.optim.SGD.step

    def step_or_die(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count > limit:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    _stopped(torch.optim.SGD, "step", step_or_die, train)


def _stopped(owner: Any, name: str, instead: Callable[..., Any], train: Callable[[], object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, instead)
        with pytest.raises(KeyboardInterrupt):
            train()
    fresh()


def train_here(run, output, log, threads, cwd) -> None:
    """What `jobs._train` does, without processes."""
    words = run.command(output, threads)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    failure = output / "failure.json"
    failure.unlink(missing_ok=True)
    fresh()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FAILURE, str(failure))
        try:
            with failure_is_noted():
                importlib.import_module(Path(words[script]).stem).main(words[script + 1 :])
        except GatedPromptError as error:
            kind = json.loads(failure.read_text())["kind"]
            raise (DataError if kind == "DataError" else GatedPromptError)(str(error)) from error
        finally:
            fresh()
