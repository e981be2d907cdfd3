# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One training run of one method with given rates, on the training part or on all labelled images."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from ..training.best_epoch import AverageWeights, BestEpoch
from ..training.loop import LoopConfig, TrainerCallback, optimizer_steps, train, training_loader
from ..training.optim import optimizer_groups
from ..training.token_cache import StartAtBlock
from .experiment import Experiment, KeptTokens, LearningRates

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Fitted:
    """A trained model with its last weights, or those of its best epoch, and how it got there."""

    model: nn.Module
    trained_parameters: int
    seconds: float


@dataclass(frozen=True)
class InitialState:
    """The common start of all runs of a method and seed, whatever their rates.

    `tensors`: what `Experiment.beginning` found. `kept`: tokens at the prompts' first block, where training starts.
    """

    method: str
    seed: int
    tensors: dict[str, Tensor]
    kept: KeptTokens | None


def batches_per_epoch(experiment: Experiment, images: Any) -> int:
    """Batches of each process in one pass over these images."""
    together = experiment.args.per_device_train_batch_size * experiment.accelerator.num_processes
    return math.ceil(len(images) / together)


def fit(
    experiment: Experiment, begin: InitialState, rates: LearningRates, batches: int, output: Path | None, label: str
) -> tuple[Fitted, BestEpoch]:
    """Train on the training part for at most `batches` batches, then restore the best epoch.

    `output`: folder for checkpoints, from the last of which the run resumes. None means no checkpoints, and
    validation at the end only. `label`: of the progress bar.
    """
    args = experiment.args
    model = restored(experiment, begin, output or Path(args.output_dir))
    watch = BestEpoch(model, experiment.validation(begin.kept), args.patience, args.ema_decay)
    steps = batches, batches
    done = descend(experiment, begin, rates, model, experiment.train_images, steps, output, label, watch)
    watch.restore()
    return done, watch


def fit_all(
    experiment: Experiment, begin: InitialState, rates: LearningRates, epochs: int, output: Path, label: str
) -> Fitted:
    """Train on all labelled images for `epochs` epochs of a schedule as long as the one that they were chosen in."""
    args, images = experiment.args, experiment.all_images
    model = restored(experiment, begin, output)
    watch = AverageWeights(model, args.ema_decay)
    each = batches_per_epoch(experiment, images)
    steps = epochs * each, args.num_train_epochs * each
    done = descend(experiment, begin, rates, model, images, steps, output, label, watch)
    watch.restore()
    return done


def time_batches(experiment: Experiment, begin: InitialState, rates: LearningRates, batches: int, label: str) -> float:
    """Seconds that so many batches of training take. What they trained is thrown away."""
    model = restored(experiment, begin, Path(experiment.args.output_dir))
    watch = AverageWeights(model, experiment.args.ema_decay)
    steps = batches, batches
    return descend(experiment, begin, rates, model, experiment.train_images, steps, None, label, watch).seconds


def restored(experiment: Experiment, begin: InitialState, output: Path) -> nn.Module:
    """Return the model of a method with the tensors that its training starts from."""
    model = experiment.model(begin.method, begin.seed, output)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, tensor in begin.tensors.items():
            parameters[name].copy_(tensor)
    return model


def descend(
    experiment: Experiment,
    begin: InitialState,
    rates: LearningRates,
    model: nn.Module,
    images: Any,
    steps: tuple[int, int],
    output: Path | None,
    label: str,
    watch: AverageWeights,
) -> Fitted:
    """Train for the first of `steps` batches in a schedule of the second."""
    args, kept, accelerator = experiment.args, begin.kept, experiment.accelerator
    groups = optimizer_groups(model, rates.main, args.weight_decay, _own_rates(model, rates))
    pixels = experiment.pixels(images, begin.seed if args.augment else None)
    source = pixels if kept is None else kept.train
    loader = training_loader(source, args.per_device_train_batch_size, args.dataloader_num_workers)
    optimizer = torch.optim.AdamW(groups, rates.main)
    updates = optimizer_steps(steps[1], batches_per_epoch(experiment, images), args.gradient_accumulation_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(args.warmup_ratio * updates), updates)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if args.report_to is not None and output is not None:
        accelerator.init_trackers("gated_prompt", config={"method": begin.method, "seed": begin.seed, **vars(rates)})
    checkpoints = output / CHECKPOINTS if output is not None else Path(args.output_dir)
    stored = output is not None and any(checkpoints.glob("step_*[0-9]"))
    plan = LoopConfig(
        steps=steps[0],
        schedule_by="step",
        checkpoints=checkpoints,
        checkpointing_steps="epoch" if output is not None else None,
        resume_from_checkpoint="latest" if stored else None,
        label=label,
    )
    shortcut = StartAtBlock(model) if kept is not None else None
    if shortcut is not None:
        shortcut.open()
    try:
        if isinstance(watch, BestEpoch):
            watch.wrapped = wrapped
            if output is not None and not stored:
                watch.after_epoch(0)
        done = train(
            accelerator,
            wrapped,
            loader,
            optimizer,
            schedule,
            lambda pixels, targets: experiment.loss(wrapped(pixels).logits, targets),
            plan,
            pixels.set_epoch,
            watch if output is not None else _StepsAlone(watch),
        )
        if isinstance(watch, BestEpoch) and output is None:
            watch.after_epoch(1)
    finally:
        if shortcut is not None:
            shortcut.close()
    return Fitted(model, sum(one.numel() for group in groups for one in group["params"]), done.seconds)


class _StepsAlone(TrainerCallback):
    """A callback for short runs, which updates the average after each step but does not score epochs."""

    def __init__(self, watch: AverageWeights) -> None:
        self.after_step = watch.after_step  # type: ignore[method-assign]


def _own_rates(model: nn.Module, rates: LearningRates) -> dict[str, dict[str, float]]:
    """Return the groups of a model that have their own rates."""
    names = {group["name"] for group in optimizer_groups(model, rates.main, 0.0, {})}
    own = {"gates": rates.gates, "temperatures": rates.gates, "head": rates.head}
    return {name: {"lr": rate} for name, rate in own.items() if name in names}
