# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the runs of a table cost: hours, memory and disk, extrapolated from a few steps that are timed here."""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gated_prompt.command_line import CommandLine
from gated_prompt.data.ade20k import IGNORE
from gated_prompt.finetune.report import environment
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.segmentation.sliding_window import MULTI_SCALE, scaled_size, window_starts

from .arguments import parse_arguments
from .classification import build
from .jobs import Run
from .segmentation.setr import setr_loss
from .tasks import Task, transform_for

STEPS = 2
CPU_BATCHES = {"train_vtab.py": 2, "train_fgvc.py": 2, "train_ade20k.py": 1}  # a GPU times whole batches
PHOTO = (512, 683)  # height and width of a photo of 4:3, for the windows that ADE20K's images take
A100, REACHED = 312e12, 0.25  # operations in a second at most, in bf16, and the share of them that is assumed
RECORD = 300_000  # bytes of log, results and settings of a run


@dataclass(frozen=True)
class Speed:
    """Of one method, for an image or window: seconds and operations to train on it and to evaluate it.

    `parameters` are trained. `peak_mib`: peak memory of this process, or of the GPU.
    """

    train: float
    eval: float
    train_operations: float
    eval_operations: float
    parameters: int
    peak_mib: int


@dataclass(frozen=True)
class Cost:
    """Hours on the device that was timed, operations of all of it, and bytes that remain on the disk."""

    hours: float = 0.0
    operations: float = 0.0
    disk: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.hours + other.hours, self.operations + other.operations, self.disk + other.disk)

    @property
    def a100_hours(self) -> float:
        """Hours of an A100 in bf16 that reaches `REACHED` of what it can do. Assumed and not measured."""
        return self.operations / (A100 * REACHED) / 3600


def arguments_of(run: Run) -> tuple[Any, Any]:
    """The script's arguments of a run, and those of its prompts.

    Raises:
        GatedPromptError: an argument is unknown or wrong.
    """
    script = importlib.import_module(run.script.removesuffix(".py"))
    if run.script == "train_ade20k.py":
        args, prompts = CommandLine((script.Arguments, PromptArguments)).parse(run.argv())
        script.fill_in(args)
        return args, prompts
    return parse_arguments(script.Arguments, run.argv(), lambda args: str(args.task))


def cost_of(runs: Sequence[Run], sizes: Mapping[str, int], speed: Speed) -> Cost:
    """The cost of a row's runs on one task, which has `sizes` images by split."""
    args, _ = arguments_of(runs[-1])
    total = Cost()
    for run in runs:
        if run.script == "train_ade20k.py":
            train = args.max_train_steps * args.per_device_train_batch_size * run.processes
            windows = _windows(args, (1.0,)) + (2 * _windows(args, MULTI_SCALE) if args.multi_scale else 0)
            evaluated = sizes["validation"] * windows
        else:
            train = args.num_train_epochs * sizes[str(run.arguments.get("train_split", "train"))]
            looks = args.num_train_epochs if run.arguments.get("curve") else 1
            evaluated = looks * sizes[str(run.arguments["eval_split"])]
        hours = (train * speed.train + evaluated * speed.eval) / 3600
        kept = 4 * speed.parameters if args.method != "full" else 0  # only adapters stay
        operations = train * speed.train_operations + evaluated * speed.eval_operations
        total += Cost(hours, operations, kept + RECORD)
    return total


def _windows(args: Any, scales: Sequence[float]) -> int:
    sizes = [scaled_size(PHOTO, args.short_side * scale) for scale in scales]
    return sum(
        len(window_starts(height, min(args.crop_size, height), args.stride))
        * len(window_starts(width, min(args.crop_size, width), args.stride))
        for height, width in sizes
    )


def time_steps(run: Run, num_classes: int) -> Speed:
    """Time a few steps of a run and of its evaluation on random images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, side, loss_of = _model(run, num_classes)
    model = model.to(device)
    batch = arguments_of(run)[0].per_device_train_batch_size
    if device.type == "cpu":
        batch = min(batch, CPU_BATCHES[run.script])
    pixels = torch.randn(batch, 3, side, side, device=device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.mixed_precision)

    def step(train: bool) -> None:
        with torch.set_grad_enabled(train), torch.autocast(device.type, dtype, enabled=dtype is not None):
            output = model(pixels)
            loss = loss_of(output) if train else None
        if loss is not None:
            loss.backward()

    def measure(train: bool) -> tuple[float, float]:
        model.train(train)
        with FlopCounterMode(display=False) as counter:
            step(train)  # the first one is slower
        begin = _now(device)
        for _ in range(STEPS):
            step(train)
        return (_now(device) - begin) / STEPS / batch, counter.get_total_flops() / batch

    (train, train_operations), (evaluate, eval_operations) = measure(True), measure(False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Speed(train, evaluate, train_operations, eval_operations, trained, environment()["peak_memory_mib"])


def _model(run: Run, num_classes: int) -> tuple[nn.Module, int, Callable[[Any], Tensor]]:
    """The model, the side of its images, and the loss of its output for labels that are all 0."""
    args, prompts = arguments_of(run)
    if run.script == "train_ade20k.py":
        script = importlib.import_module("train_ade20k")

        def segmentation_loss(output: Any) -> Tensor:
            labels = torch.zeros_like(output.logits[:, 0], dtype=torch.long)
            return setr_loss(output, labels, IGNORE)

        return script.build_model(args, prompts, num_classes), args.crop_size, segmentation_loss
    names = [str(index) for index in range(num_classes)]
    model = build(args, prompts, Task(str(args.task), names, None, None))  # type: ignore[arg-type]

    def loss(output: Any) -> Tensor:
        return F.cross_entropy(output.logits, torch.zeros_like(output.logits[:, 0], dtype=torch.long))

    return model, transform_for(args.backbone, "dtd").size, loss


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
