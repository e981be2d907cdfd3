# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The training loop under classification and segmentation: how it starts, resumes after a kill, and ends."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import DistributedDataParallelKwargs, KwargsHandler, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .checkpoints import Fact, is_due, keep_only_trainable, resume, save_checkpoint


class TrainerCallback:
    """A callback of the training loop. `done` ends the training before its last step.

    What has to survive a kill goes into `state_dict` and `load_state_dict`: it is a part of every checkpoint.
    """

    done = False

    def after_step(self) -> None:
        """Called after each step of the optimizer."""

    def after_epoch(self, epochs: int) -> dict[str, float]:
        """Called when so many epochs are over, before their checkpoint is written. Returns what trackers log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, and what is kept on the way.

    Attributes:
        steps: batches of each process in all. The last epoch may be cut short. With gradient accumulation the
            optimizer steps once in several of them, and where an epoch ends.
        schedule_by: "epoch" or "step", after which the learning rates change.
        checkpoints: folder of the checkpoints.
        checkpointing_steps: 'epoch', a number of steps, or None for no checkpoints.
        resume_from_checkpoint: a checkpoint folder, 'latest', or None to start anew.
        label: of the progress bar.
    """

    steps: int
    schedule_by: str
    checkpoints: Path
    checkpointing_steps: str | None
    resume_from_checkpoint: str | None
    label: str = "train"


def plan_of(args: Any, output: Path, steps: int, schedule_by: str) -> LoopConfig:
    """The plan of a script with `--checkpointing_steps` and `--resume_from_checkpoint`."""
    return LoopConfig(
        steps, schedule_by, output / "checkpoints", args.checkpointing_steps, args.resume_from_checkpoint
    )


@dataclass(frozen=True)
class LoopResult:
    """What one call of `train` did: steps, without those before it resumed, and seconds."""

    steps: int
    seconds: float


def make_accelerator(
    seed: int, report_to: str | None, output: Path, *handlers: KwargsHandler, accumulation: int = 1
) -> Accelerator:
    """Seed everything, and say how the batches are to be drawn. `accumulation`: batches per step of the optimizer."""
    accelerator = Accelerator(
        gradient_accumulation_steps=accumulation,
        log_with=report_to,
        project_dir=str(output),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed),
        kwargs_handlers=list(handlers),
    )
    set_seed(seed)
    return accelerator


def new_training(accelerator: Accelerator, seed: int, output: Path, *, unused_parameters: bool = False) -> None:
    """Prepare an accelerator for another training: it forgets the one before, and everything is seeded.

    `unused_parameters`: some that are trained may take no part in a batch.
    """
    accelerator.free_memory()
    accelerator.dataloader_config.data_seed = seed
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)
    accelerator.project_configuration.set_directories(str(output))
    set_seed(seed)


def optimizer_steps(batches: int, per_epoch: int, accumulation: int) -> int:
    """Steps of the optimizer in so many batches: one in `accumulation`, and one where an epoch ends."""
    epochs, rest = divmod(batches, per_epoch)
    return epochs * math.ceil(per_epoch / accumulation) + rest // accumulation


def training_loader(data: Dataset[Any], batch_size: int, workers: int, *, drop_last: bool = False) -> DataLoader[Any]:
    """Shuffled batches.

    Their generator is their own: if an epoch's start drew from the one that the dropout uses, a resumed run would
    differ from one that was never stopped.
    """
    return DataLoader(
        data, batch_size, shuffle=True, drop_last=drop_last, generator=torch.Generator(), num_workers=workers
    )


def train(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    plan: LoopConfig,
    set_epoch: Callable[[int], None] | None = None,
    watch: TrainerCallback | None = None,
) -> LoopResult:
    """Train by `plan`, with a checkpoint where it is due.

    `model`, `loader` and `optimizer` are prepared by `accelerator`. The schedule is not, for that would step it once
    for each process. `loss_of` gives the loss of a batch (pixels, labels). `set_epoch` tells the images which pass it
    is, counted from 0.

    Raises:
        GatedPromptError: there is no such checkpoint to resume from.
    """
    watch = watch or TrainerCallback()
    with _in_checkpoints(accelerator, schedule, watch):
        made_with = _made_with(optimizer, loader)
        step = first_step = resume(accelerator, plan.resume_from_checkpoint, plan.checkpoints, made_with)
        begin = time.perf_counter()
        show = accelerator.is_main_process
        bar = tqdm(total=plan.steps, initial=step, desc=plan.label, leave=False, disable=not show)
        epochs = math.ceil(plan.steps / len(loader))
        while step < plan.steps and not watch.done:
            epoch, done = divmod(step, len(loader))
            bar.set_description(f"{plan.label}, epoch {epoch + 1}/{epochs}")
            model.train()
            loader.set_epoch(epoch)  # type: ignore[attr-defined]  # accelerate's
            if set_epoch is not None:
                set_epoch(epoch)
            for pixels, labels in skip_first_batches(loader, done) if done else loader:
                with accelerator.accumulate(model):
                    loss = loss_of(pixels, labels)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                step += 1
                bar.update()
                rate, epoch_ends = schedule.get_last_lr()[0], step % len(loader) == 0
                if epoch_ends:
                    bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{rate:.3g}")
                if epoch_ends or (plan.schedule_by == "step" and accelerator.sync_gradients):
                    schedule.step()
                if accelerator.sync_gradients:
                    watch.after_step()
                if epoch_ends:
                    measures = watch.after_epoch(step // len(loader))
                    accelerator.log({"loss": loss.item(), "learning_rate": rate, **measures}, step=step)
                if plan.checkpointing_steps is not None and is_due(plan.checkpointing_steps, step, len(loader)):
                    save_checkpoint(accelerator, plan.checkpoints, f"step_{step:08d}", made_with)
                if step == plan.steps:
                    break
        bar.close()
        return LoopResult(step - first_step, time.perf_counter() - begin)


@contextmanager
def _in_checkpoints(accelerator: Accelerator, *objects: Any) -> Iterator[None]:
    """Let checkpoints hold what is trained and these objects, until the training ends."""
    accelerator.register_for_checkpointing(*objects)
    hooks = keep_only_trainable(accelerator)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        accelerator._custom_objects.clear()  # accelerate has no other way to forget them


def _made_with(optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> dict[str, Fact]:
    """Settings stored in the checkpoint that would silently override the options."""
    facts: dict[str, Fact] = {"batches per epoch": len(loader)}
    for index, group in enumerate(optimizer.param_groups):
        settings = {k: v for k, v in group.items() if k not in ("lr", "name") and isinstance(v, Fact)}
        facts |= {f"{key} of {group.get('name', index)}": value for key, value in settings.items()}
    return facts
