# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One training run of one method with given rates, on the training part or on all labelled images."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

from ..training.loop import LoopConfig, TrainerCallback, train, training_loader
from ..training.optim import optimizer_groups
from ..training.token_cache import StartAtBlock
from .best_epoch import AverageWeights, BestEpoch
from .experiment import Experiment, KeptTokens, score
from .image_set import ImageSet, Pixels

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates: of the prompts (LoRA, backbone), of the gates and temperatures, and of the head."""

    main: float
    gates: float
    head: float


@dataclass(frozen=True)
class Fitted:
    """A trained model, with the weights of its best epoch, and how it got there. No `watch` without validation."""

    model: nn.Module
    accelerator: Accelerator
    watch: BestEpoch | None
    trained_parameters: int
    seconds: float


@dataclass(frozen=True)
class InitialState:
    """Where the runs of a method and seed begin, whatever their rates.

    `tensors`: what `Experiment.beginning` found. `kept`: tokens at the prompts' first block, where training starts.
    """

    method: str
    seed: int
    tensors: dict[str, Tensor]
    kept: KeptTokens | None


def batches_per_epoch(experiment: Experiment, data: ImageSet, processes: int) -> int:
    """Batches of each process in one pass over these images."""
    return math.ceil(len(data) / (experiment.args.per_device_train_batch_size * processes))


def fit(
    experiment: Experiment, begin: InitialState, rates: LearningRates, batches: int, output: Path | None, label: str
) -> Fitted:
    """Train on the training part for at most `batches` batches, then restore the best epoch.

    `output`: folder for checkpoints, from the last of which the run resumes. None: no checkpoints, and validation at
    the end only. `label`: of the progress bar.
    """
    args, kept, parts = experiment.args, begin.kept, experiment.parts
    accelerator, model = restored(experiment, begin, output or Path(args.output_dir))
    held: Any = DataLoader(
        Pixels(parts.validation, experiment.backbone.predictor) if kept is None else kept.validation,
        args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    held = accelerator.prepare(held)
    watch = BestEpoch(
        model,
        lambda wrapped: score(wrapped, held, accelerator),
        experiment.loss,
        parts.validation.targets,
        experiment.measure,
        args.patience,
        args.ema_decay,
    )
    done = descend(
        experiment,
        begin,
        rates,
        (accelerator, model),
        parts.train,
        (batches, batches),
        output,
        label,
        watch if output is not None else _Average(watch),
        watch,
    )
    watch.restore()
    return Fitted(model, accelerator, watch, *done)


def fit_all(
    experiment: Experiment, begin: InitialState, rates: LearningRates, epochs: int, output: Path, label: str
) -> Fitted:
    """Train on all labelled images for `epochs` epochs of a schedule as long as the one that they were chosen in."""
    args, data = experiment.args, experiment.division.images
    accelerator, model = restored(experiment, begin, output)
    each = batches_per_epoch(experiment, data, accelerator.num_processes)
    watch = AverageWeights(model, args.ema_decay)
    steps = (epochs * each, args.num_train_epochs * each)
    done = descend(experiment, begin, rates, (accelerator, model), data, steps, output, label, watch, None)
    watch.restore()
    return Fitted(model, accelerator, None, *done)


def restored(experiment: Experiment, begin: InitialState, output: Path) -> tuple[Accelerator, nn.Module]:
    """An accelerator and the model of a method with the trained tensors that it begins with."""
    accelerator, model = experiment.start(begin.method, begin.seed, output)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, tensor in begin.tensors.items():
            parameters[name].copy_(tensor)
    return accelerator, model


def descend(
    experiment: Experiment,
    begin: InitialState,
    rates: LearningRates,
    prepared: tuple[Accelerator, nn.Module],
    data: ImageSet,
    steps: tuple[int, int],
    output: Path | None,
    label: str,
    watch: TrainerCallback,
    scored: BestEpoch | None,
) -> tuple[int, float]:
    """Train for the first of `steps` batches in a schedule of the second. Return trainable parameters and seconds."""
    args, kept, (accelerator, model) = experiment.args, begin.kept, prepared
    groups = optimizer_groups(model, rates.main, args.weight_decay, _own(model, rates))
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    pixels = Pixels(data, experiment.backbone.predictor, begin.seed if args.augment else None)
    source = pixels if kept is None else kept.train
    loader = training_loader(source, args.per_device_train_batch_size, args.dataloader_num_workers)
    optimizer = torch.optim.AdamW(groups, rates.main)
    updates = math.ceil(steps[1] / args.gradient_accumulation_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(args.warmup_ratio * updates), updates)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if args.report_to is not None and output is not None:
        accelerator.init_trackers("gated_prompt", config={"method": begin.method, "seed": begin.seed, **vars(rates)})
    checkpoints = output / CHECKPOINTS if output is not None else Path(args.output_dir)
    shortcut = None if kept is None else StartAtBlock(model)
    if shortcut is not None:
        shortcut.open()
    stored = output is not None and any(checkpoints.glob("step_*[0-9]"))
    if scored is not None:
        scored.wrapped = wrapped
        if output is not None and not stored:
            scored.after_epoch(0)
    plan = LoopConfig(
        steps=steps[0],
        schedule_by="step",
        checkpoints=checkpoints,
        checkpointing_steps="epoch" if output is not None else None,
        resume_from_checkpoint="latest" if stored else None,
        label=label,
    )
    done = train(
        accelerator,
        wrapped,
        loader,
        optimizer,
        schedule,
        lambda images, targets: experiment.loss(wrapped(images).logits, targets, args.label_smoothing),
        plan,
        pixels.set_epoch,
        watch,
    )
    if scored is not None and output is None:
        scored.after_epoch(1)
    if shortcut is not None:
        shortcut.close()
    return trained, done.seconds


class _Average(BestEpoch):
    """For short runs: updates the average after each step, but does not score epochs."""

    def __init__(self, watch: BestEpoch) -> None:
        self.__dict__ = watch.__dict__

    def after_epoch(self, epochs: int) -> dict[str, float]:
        return {}


def _own(model: nn.Module, rates: LearningRates) -> dict[str, dict[str, float]]:
    """The groups that a model has and that have rates of their own."""
    names = {group["name"] for group in optimizer_groups(model, rates.main, 0.0, {})}
    own = {"gates": rates.gates, "temperatures": rates.gates, "head": rates.head}
    return {name: {"lr": rate} for name, rate in own.items() if name in names}
