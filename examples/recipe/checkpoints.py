# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Output folders and checkpoints that survive a kill."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from gated_prompt import GatedPromptError

TRAINABLE = "trainable.safetensors"


def prepare_output_dir(folder: str) -> Path:
    """Make the folder and try to write into it, before minutes of training are spent.

    Raises:
        GatedPromptError: it cannot be made or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise GatedPromptError(
            f"cannot write into --output_dir {folder!r} ({error.strerror}); give a folder that you may write to"
        ) from error
    return path


def keep_only_trainable(accelerator: Accelerator) -> None:
    """Let `save_state` and `load_state` hold the trained parameters, not the frozen backbone."""

    def save(models: list[torch.nn.Module], weights: list[Any], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            state = trained_tensors(accelerator.unwrap_model(models[0]))
            save_file({n: t.detach().contiguous() for n, t in state.items()}, os.path.join(folder, TRAINABLE))

    def load(models: list[torch.nn.Module], folder: str) -> None:
        state = trained_tensors(accelerator.unwrap_model(models.pop()))
        with torch.no_grad():
            for name, value in load_file(os.path.join(folder, TRAINABLE)).items():
                state[name].copy_(value)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters by name, and the running statistics of the batch norms among them."""
    tensors: dict[str, torch.Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for path, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            tensors |= {f"{path}.{name}": buffer for name, buffer in module.named_buffers(recurse=False)}
    return tensors


def save_checkpoint(accelerator: Accelerator, folder: Path, name: str) -> None:
    """Write a checkpoint and then drop older ones; a kill at any moment leaves a whole one behind."""
    partial = folder / f"{name}.partial"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
        os.replace(partial, folder / name)
        for old in folder.iterdir():
            if old.name != name:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def check_interval(every: str) -> None:
    """Raises:
    GatedPromptError: `--checkpointing_steps` is neither 'epoch' nor a number of steps.
    """
    if every != "epoch" and not (every.isdecimal() and int(every) > 0):
        raise GatedPromptError(f"--checkpointing_steps is {every!r}; give 'epoch' or a number of steps, 1 or more")


def is_due(every: str, step: int, epoch_length: int) -> bool:
    """Whether `--checkpointing_steps` asks for a checkpoint after this step, counted from 1."""
    return step % (epoch_length if every == "epoch" else int(every)) == 0


def find_checkpoint(asked: str, folder: Path) -> Path:
    """The checkpoint folder that `--resume_from_checkpoint` means: a path, or 'latest' for the one in `folder`.

    Raises:
        GatedPromptError: there is none.
    """
    found = (
        sorted(p for p in folder.glob("step_*") if not p.name.endswith(".partial"))
        if asked == "latest"
        else [Path(asked)]
    )
    if not found or not found[-1].is_dir():
        raise GatedPromptError(
            f"no checkpoint to resume from: {asked!r} (looked in {folder}); leave the argument out to start anew"
        )
    return found[-1]


def resume(accelerator: Accelerator, asked: str | None, folder: Path) -> int:
    """Load what `--resume_from_checkpoint` asks for; return the step that it was saved after, 0 if nothing is asked.

    Raises:
        GatedPromptError: there is no such checkpoint.
    """
    if not asked:
        return 0
    checkpoint = find_checkpoint(asked, folder)
    accelerator.load_state(str(checkpoint))
    step = int(checkpoint.name.removeprefix("step_"))
    accelerator.print(f"resumed after step {step}")
    return step
