# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One training run of one method with given rates, by the loop in recipe/; the best epoch is kept."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

from ..training.groups import parameter_groups
from ..training.loop import Plan, train, training_loader
from ..training.token_cache import StartAtBlock
from .best_epoch import BestEpoch
from .experiment import Bench, score
from .kept_tokens import KeptTokens
from .pixels import Pixels

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Rates:
    """Peak learning rates: of the prompts (LoRA, backbone), of the gates and temperatures, and of the head."""

    main: float
    gates: float
    head: float


@dataclass(frozen=True)
class Fitted:
    """A trained model, with the weights of its best epoch, and how it got there."""

    model: nn.Module
    accelerator: Accelerator
    watch: BestEpoch
    trained_parameters: int
    seconds: float


@dataclass(frozen=True)
class Beginning:
    """Where the runs of a method and seed begin, whatever their rates.

    `tensors`: what `Bench.beginning` found. `kept`: tokens at the prompts' first block, at which training then starts.
    """

    method: str
    seed: int
    tensors: dict[str, Tensor]
    kept: KeptTokens | None


def batches_per_epoch(bench: Bench, processes: int) -> int:
    """Batches of each process in one pass over the training images."""
    return math.ceil(len(bench.parts.train) / (bench.args.per_device_train_batch_size * processes))


def fit(bench: Bench, begin: Beginning, rates: Rates, batches: int, output: Path | None, label: str) -> Fitted:
    """Train for at most `batches` batches, then restore the best epoch.

    `output`: folder for checkpoints, from the last of which the run resumes; None: no checkpoints, and validation at
    the end only. `label`: of the progress bar.
    """
    args, method, seed, kept = bench.args, begin.method, begin.seed, begin.kept
    accelerator, model = bench.start(method, seed, output or Path(args.output_dir))
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, tensor in begin.tensors.items():
            parameters[name].copy_(tensor)
    groups = parameter_groups(model, rates.main, args.weight_decay, _own(model, rates))
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    pixels = Pixels(bench.parts.train, bench.predictor, seed if args.augment else None)
    loader = training_loader(
        pixels if kept is None else kept.train, args.per_device_train_batch_size, args.dataloader_num_workers
    )
    held = DataLoader(
        Pixels(bench.parts.validation, bench.predictor) if kept is None else kept.validation,
        args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    optimizer = torch.optim.AdamW(groups, rates.main)
    updates = math.ceil(batches / args.gradient_accumulation_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(args.warmup_ratio * updates), updates)
    wrapped, optimizer, loader, held = accelerator.prepare(model, optimizer, loader, held)
    if args.report_to is not None and output is not None:
        accelerator.init_trackers("gated_prompt", config={"method": method, "seed": seed, **vars(rates)})
    watch = BestEpoch(
        model,
        lambda: score(wrapped, held, accelerator),
        bench.loss,
        bench.parts.validation.targets,
        bench.measure,
        args.patience,
        args.ema_decay,
    )
    checkpoints = output / CHECKPOINTS if output is not None else Path(args.output_dir)
    shortcut = None if kept is None else StartAtBlock(model)
    if shortcut is not None:
        shortcut.open()
    stored = output is not None and any(checkpoints.glob("step_*[0-9]"))
    if output is not None and not stored:
        watch.after_epoch(0)
    plan = Plan(
        steps=batches,
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
        lambda images, targets: bench.loss(wrapped(images).logits, targets, args.label_smoothing),
        plan,
        pixels.set_epoch,
        watch if output is not None else _Average(watch),
    )
    if output is None:
        watch.after_epoch(1)
    if shortcut is not None:
        shortcut.close()
    watch.restore()
    return Fitted(model, accelerator, watch, trained, done.seconds)


class _Average(BestEpoch):
    """For short runs: updates the average after each step, but does not score epochs."""

    def __init__(self, watch: BestEpoch) -> None:
        self.__dict__ = watch.__dict__

    def after_epoch(self, epochs: int) -> dict[str, float]:
        return {}


def _own(model: nn.Module, rates: Rates) -> dict[str, dict[str, float]]:
    """The groups that a model has and that have rates of their own."""
    names = {group["name"] for group in parameter_groups(model, rates.main, 0.0, {})}
    own = {"gates": rates.gates, "temperatures": rates.gates, "head": rates.head}
    return {name: {"lr": rate} for name, rate in own.items() if name in names}
