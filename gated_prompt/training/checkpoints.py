# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Output folders, and checkpoints that survive a kill and detect damage.

    <folder>/step_00000012/            as accelerate writes it, with the trained parameters alone
    <folder>/step_00000012/whole.json  digests of the other files, written last
    <folder>/step_00000012.partial     being written
    <folder>/step_00000012.old         a previous run's, kept until this run has a checkpoint

The two newest are kept. Nothing else in the folder is touched.
"""

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load
from safetensors.torch import load_file, save_file
from torch.utils.hooks import RemovableHandle

from ..errors import GatedPromptError

TRAINABLE, WHOLE = "trainable.safetensors", "whole.json"
KEPT = 2
Fact = int | float | str | bool
NAME = re.compile(r"step_\d{8,}")
OURS = re.compile(r"step_\d{8,}(\.partial|\.old)?")


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
            f"cannot write into --output_dir {folder!r} ({error.strerror}). Give a folder that you may write to."
        ) from error
    return path


def keep_only_trainable(accelerator: Accelerator) -> list[RemovableHandle]:
    """Let `save_state` and `load_state` hold the trained parameters, not the frozen backbone. Returns the hooks."""

    def save(models: list[torch.nn.Module], weights: list[Any], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            state = trained_tensors(accelerator.unwrap_model(models[0]))
            save_file({n: t.detach().contiguous() for n, t in state.items()}, os.path.join(folder, TRAINABLE))

    def load(models: list[torch.nn.Module], folder: str) -> None:
        state = trained_tensors(accelerator.unwrap_model(models.pop()))
        saved = load_file(os.path.join(folder, TRAINABLE))
        own, other = ({name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (state, saved))
        if own != other:
            name = next(name for name in {**own, **other} if own.get(name) != other.get(name))
            raise GatedPromptError(
                f"the checkpoint {folder} belongs to another model: {name} has the shape {other.get(name)} there and "
                f"{own.get(name)} here (None means that it is not trained). Give the options of the run that wrote it."
            )
        with torch.no_grad():
            for name, value in saved.items():
                state[name].copy_(value)

    return [accelerator.register_save_state_pre_hook(save), accelerator.register_load_state_pre_hook(load)]


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters by name, and the running statistics of the batch norms among them."""
    tensors: dict[str, torch.Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for path, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            tensors |= {f"{path}.{name}": buffer for name, buffer in module.named_buffers(recurse=False)}
    return tensors


def save_checkpoint(accelerator: Accelerator, folder: Path, name: str, made_with: Mapping[str, Fact] = {}) -> None:
    """Write a checkpoint and then drop older ones. A kill at any moment leaves a complete one behind.

    `made_with` is what a run that resumes from it must have in common with this one.
    """
    partial, target = folder / f"{name}.partial", folder / name
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)  # of a kill, perhaps with other files
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {file.relative_to(partial).as_posix(): _digest(file) for file in partial.rglob("*") if file.is_file()}
        common = {"processes": accelerator.num_processes, **made_with}
        (partial / WHOLE).write_text(json.dumps({"files": files, "made_with": common}, indent=1))
        if target.exists():
            _set_aside(target)
        os.replace(partial, target)
        drop_checkpoints(folder, {name, *[path.name for path in checkpoints(folder) if path.name < name][1 - KEPT :]})
    accelerator.wait_for_everyone()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last."""
    return sorted(path for path in folder.glob("step_*") if NAME.fullmatch(path.name) and path.is_dir())


def drop_checkpoints(folder: Path, kept: Set[str] = frozenset()) -> None:
    """Delete the checkpoints in a folder, whole or not, but for those with these names. Nothing else."""
    for path in folder.glob("step_*"):
        if OURS.fullmatch(path.name) and path.name not in kept and path.is_dir():
            shutil.rmtree(path)


def check_interval(every: str) -> None:
    """Raises:
    GatedPromptError: `--checkpointing_steps` is neither 'epoch' nor a number of steps.
    """
    if every != "epoch" and not (every.isdecimal() and int(every) > 0):
        raise GatedPromptError(f"--checkpointing_steps is {every!r}. Give 'epoch' or a number of steps, 1 or more.")


def is_due(every: str, step: int, epoch_length: int) -> bool:
    """Whether `--checkpointing_steps` asks for a checkpoint after this step, counted from 1."""
    return step % (epoch_length if every == "epoch" else int(every)) == 0


def damage(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that differs from what was written, and how. None if all are intact."""
    try:
        files = dict(json.loads((checkpoint / WHOLE).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{WHOLE} is missing or cannot be read"
    for name, digest in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} is not what was written"
    return None


def find_checkpoint(asked: str, folder: Path) -> tuple[Path | None, str]:
    """The checkpoint that `--resume_from_checkpoint` means, and what the user should know about the choice.

    'latest' is the newest whole one in `folder`, or None on a first start. All else is the path of one.

    Raises:
        GatedPromptError: there is none at that path, or what is there is damaged.
    """
    candidates = checkpoints(folder)[::-1] if asked == "latest" else [Path(asked)]
    if not candidates:
        return None, f"no checkpoint in {folder} yet, so training starts from step 0"
    if not (NAME.fullmatch(candidates[0].name) and candidates[0].is_dir()):
        raise GatedPromptError(
            f"no checkpoint to resume from: {asked!r}. Give 'latest' or the path of a folder such as step_00000120."
        )
    faults: list[str] = []
    for path in candidates:
        why = damage(path)
        if why is None:
            return path, " ".join([*faults, f"Resuming from {path}."]) if faults else ""
        faults.append(f"The checkpoint {path} is damaged: {why}.")
    raise GatedPromptError(f"{' '.join(faults)} Give the path of a whole one, or delete it to start from step 0.")


def resume(accelerator: Accelerator, asked: str | None, folder: Path, made_with: Mapping[str, Fact] = {}) -> int:
    """Load what `--resume_from_checkpoint` asks for. Return the step that it was saved after, 0 if a run starts.

    All processes take the one that the main process has chosen.

    Raises:
        GatedPromptError: there is no such checkpoint, it is damaged, or it is that of another run.
    """
    answer: list[Any] = [None, "", ""]
    if accelerator.is_main_process:
        try:
            answer[:2] = find_checkpoint(asked, folder) if asked else (None, "")
            if answer[0] is None or answer[0].resolve().parent != folder.resolve():
                for path in checkpoints(folder):
                    _set_aside(path)
        except GatedPromptError as error:
            answer[2] = str(error)
    checkpoint, note, refusal = broadcast_object_list(answer)
    if refusal:
        raise GatedPromptError(refusal)
    if note:
        accelerator.print(note)
    if checkpoint is None:
        return 0
    written = json.loads((checkpoint / WHOLE).read_text()).get("made_with", {})
    for name, here in {"processes": accelerator.num_processes, **made_with}.items():
        if written.get(name) != here:
            raise GatedPromptError(
                f"the checkpoint {checkpoint} belongs to another run: {name} is {written.get(name)} there and {here} "
                "here. Give the options of the run that wrote it."
            )
    try:
        accelerator.load_state(str(checkpoint))
    except GatedPromptError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise GatedPromptError(
            f"the checkpoint {checkpoint} cannot be restored here ({str(error).splitlines()[0]}). Give the options of "
            "the run that wrote it."
        ) from error
    _check_random_states(checkpoint / f"random_states_{accelerator.process_index}.pkl")
    step = int(checkpoint.name.removeprefix("step_"))
    accelerator.print(f"resumed after step {step}")
    return step


def _check_random_states(file: Path) -> None:
    """Warn where accelerate has left out random states, which it does silently."""
    saved = load(file)
    same = random.getstate() == saved["random_state"] and torch.equal(
        torch.get_rng_state(), saved["torch_manual_seed"]
    )
    if not same or (torch.cuda.is_available() and "torch_cuda_manual_seed" not in saved):
        warnings.warn(
            f"the random states in {file} could not be restored, perhaps those of another device. The run continues, "
            "but its results will differ from those of an uninterrupted run.",
            stacklevel=3,
        )


def _set_aside(checkpoint: Path) -> None:
    """Rename a previous run's checkpoint in the same folder. It is deleted once this run has one."""
    old = checkpoint.with_name(f"{checkpoint.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(checkpoint, old)


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
