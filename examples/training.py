# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the classification scripts share: their arguments, the training loop, and the score at its end.

Recipe by default (paper, Appendix A; official code): SGD with momentum 0.9, no weight decay, one learning rate for
prompts, gates, temperatures and head; 100 epochs, 10 of them linear warm-up from 0, then a cosine to 0, stepped once
an epoch; prompt dropout 0.1; the inside of the frozen blocks in eval mode.

The accuracy is that of the last epoch. The images that are scored are looked at once, when training is over, so
that no epoch can be chosen by them.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration, PartialState, skip_first_batches
from accelerate.utils import set_seed
from checkpoints import check_interval, is_due, keep_only_trainable, resume, save_checkpoint
from methods import (
    METHODS,
    PROMPT_METHODS,
    SHIPPED_BACKBONE,
    PromptArguments,
    backbone_kind,
    build_model,
    check_method,
    parameter_groups,
)
from prefix_cache import CachedPrefix, StartAtBlock
from presets import PRESETS, paper_preset
from probe import patch_features, probe
from reporting import environment, push, read_out, write_results
from tasks import Task
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm
from transformers import AutoModel, HfArgumentParser, get_cosine_schedule_with_warmup

from gated_prompt import GatedPromptError

OPTIMIZERS = ("sgd", "adamw")


@dataclass
class RunArguments:
    """One training run; the settings of the prompts are those of `GatedPromptConfig`."""

    data_dir: str | None = field(default=None, metadata={"help": "folder with the data; without it: the Hub"})
    backbone: str = field(default=str(SHIPPED_BACKBONE), metadata={"help": "Hub id or folder of a ViT"})
    backbone_kind: str = field(
        default="auto", metadata={"help": "mae or moco, for --preset and --pooling auto; auto: by the name; or other"}
    )
    method: str = field(default="gated", metadata={"help": f"one of: {', '.join(METHODS)}"})
    preset: str = field(
        default="none",
        metadata={
            "help": "paper: batch size, prompts, learning rate and gate_init of the paper's Table 5, with the "
            "official code's head; arguments that are given win"
        },
    )
    output_dir: str = field(default="runs/vtab", metadata={"help": "where everything is written"})
    seed: int = field(default=42, metadata={"help": "of head, prompts, order, crops and dropout"})
    num_train_epochs: int = field(default=100, metadata={"help": "passes over the training images"})
    warmup_epochs: int = field(default=10, metadata={"help": "epochs of linear warm-up; the first runs at rate 0"})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "images a process and step"})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "images a process and step"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    optimizer: str = field(
        default="sgd",
        metadata={"help": "sgd: the paper's; or adamw, which gets further in few epochs, at rates near 0.03"},
    )
    learning_rate: float = field(default=0.03, metadata={"help": "peak rate; of SGD the paper tries 0.05 to 5"})
    prompt_learning_rate: float | None = field(default=None, metadata={"help": "of the prompts; None: the common one"})
    gate_learning_rate: float | None = field(default=None, metadata={"help": "of the gates; None: the common one"})
    temperature_learning_rate: float | None = field(
        default=None, metadata={"help": "of the temperatures; None: the common one"}
    )
    head_learning_rate: float | None = field(default=None, metadata={"help": "of the head; None: the common one"})
    momentum: float = field(default=0.9, metadata={"help": "of SGD"})
    weight_decay: float = field(default=0.0, metadata={"help": "on everything that is trained"})
    prompt_weight_decay: float | None = field(default=None, metadata={"help": "of the prompts; None: the common one"})
    gate_weight_decay: float | None = field(default=None, metadata={"help": "of the gates; None: the common one"})
    temperature_weight_decay: float | None = field(
        default=None, metadata={"help": "of the temperatures; None: the common one"}
    )
    head_weight_decay: float | None = field(default=None, metadata={"help": "of the head; None: the common one"})
    head_init: str = field(
        default="model", metadata={"help": "model: transformers' initial head; kaiming: the official code's"}
    )
    lora_r: int = field(default=8, metadata={"help": "rank of --method lora"})
    max_train_samples: int | None = field(default=None, metadata={"help": "use fewer training images, to try things"})
    linear_probe: bool = field(default=True, metadata={"help": "score a linear probe on the same images as well"})
    checkpointing_steps: str = field(default="epoch", metadata={"help": "'epoch', or a number of steps"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "a checkpoint folder, or 'latest'"})
    report_to: str | None = field(default=None, metadata={"help": "tracker: tensorboard, wandb, trackio, ..."})
    push_to_hub: bool = field(default=False, metadata={"help": "upload the adapter folder when done"})
    hub_model_id: str | None = field(default=None, metadata={"help": "repository to push to, user/name"})


Arguments = TypeVar("Arguments", bound=RunArguments)


def parse_arguments(
    kind: type[Arguments], argv: list[str] | None, task_of: Callable[[Arguments], str]
) -> tuple[Arguments, Any]:
    """The run's arguments and those of the prompts, with the preset filled in where nothing was given.

    Raises:
        GatedPromptError: method, optimizer, preset or kind of backbone are unknown, `--checkpointing_steps` is no
            interval, the paper has no settings for the task, or an argument that was given contradicts the method.
    """
    parser = HfArgumentParser((kind, PromptArguments))
    args, prompts = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    check_method(args.method)
    check_interval(args.checkpointing_steps)
    if args.optimizer not in OPTIMIZERS:
        raise GatedPromptError(f"unknown --optimizer {args.optimizer!r}; known optimizers: {', '.join(OPTIMIZERS)}")
    # Parsed once more over marks, which the parser leaves where nothing was given.
    marks = argparse.Namespace(**dict.fromkeys((*vars(args), *vars(prompts)), argparse.SUPPRESS))
    given = {k: v for k, v in vars(parser.parse_args(argv, marks)).items() if v is not argparse.SUPPRESS}
    for name, value in PROMPT_METHODS.get(args.method, {}).items():
        if given.get(name, value) != value:
            raise GatedPromptError(f"--{name} {given[name]} contradicts --method {args.method}; leave one of them out")
    if args.preset not in PRESETS:
        raise GatedPromptError(f"unknown --preset {args.preset!r}; known presets: {', '.join(PRESETS)}")
    if args.preset == "paper":
        preset = paper_preset(task_of(args), backbone_kind(args.backbone, args.backbone_kind), args.method)
        processes = PartialState().num_processes
        if preset.batch_size % processes:
            raise GatedPromptError(
                f"--preset paper has batches of {preset.batch_size} images, which {processes} processes cannot share "
                "equally; give --per_device_train_batch_size, or start another number of processes"
            )
        chosen = {
            "per_device_train_batch_size": preset.batch_size // processes,
            "learning_rate": preset.learning_rate,
            "head_init": "kaiming",
            "num_virtual_tokens": preset.num_virtual_tokens,
            "gate_init": preset.gate_init,
        }
        for name, value in chosen.items():
            if name not in given:
                setattr(prompts if hasattr(prompts, name) else args, name, value)
    return args, prompts


def start(args: RunArguments, output: Path) -> Accelerator:
    """Seeds everything and says how the batches are to be drawn."""
    accelerator = Accelerator(
        log_with=args.report_to,
        project_dir=str(output),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
    )
    set_seed(args.seed)
    return accelerator


def build(args: RunArguments, prompts: Any, task: Task) -> torch.nn.Module:
    """The model that the arguments ask for, with a head for the task's classes; see `build_model`."""
    return build_model(
        args.backbone,
        args.method,
        prompts,
        task.class_names,
        kind=args.backbone_kind,
        lora_r=args.lora_r,
        head_init=args.head_init,
    )


def evaluate(model: torch.nn.Module, loader: DataLoader[Any], num_classes: int, accelerator: Accelerator) -> float:
    """Top-1 accuracy in [0, 1]."""
    metric = MulticlassAccuracy(num_classes, average="micro").to(accelerator.device)
    model.eval()
    with torch.inference_mode():
        for pixels, labels in tqdm(loader, desc="evaluate", disable=not accelerator.is_main_process, leave=False):
            metric.update(*accelerator.gather_for_metrics((model(pixels).logits, labels)))
    return float(metric.compute())


def train_and_score(
    args: RunArguments,
    prompts: Any,
    accelerator: Accelerator,
    output: Path,
    task: Task,
    model: torch.nn.Module,
    train: Dataset[Any],
    probed: Dataset[Any],
    scored: Dataset[Any],
) -> dict[str, Any]:
    """Train, score once, write everything, and return the content of results.json (empty but on the main process).

    `train`, `scored`: (pixels, class) of `task.train` and `task.eval`; `probed`: of `task.train` without augmentation,
    for the linear probe.
    """
    before = read_out(model)
    count = min(len(task.train), args.max_train_samples or len(task.train))
    train_data = Subset(train, range(count))
    workers = args.dataloader_num_workers
    # A generator of its own: starting an epoch must not draw from the one that the dropout uses (exact resuming).
    loader = DataLoader(
        train_data, args.per_device_train_batch_size, shuffle=True, generator=torch.Generator(), num_workers=workers
    )
    eval_loader = DataLoader(scored, args.per_device_eval_batch_size, num_workers=workers)

    # Optimizer and schedule. The schedule is stepped once an epoch, by hand: prepared, it would be stepped once for
    # each process.
    own = {
        "prompts": _given(lr=args.prompt_learning_rate, weight_decay=args.prompt_weight_decay),
        "gates": _given(lr=args.gate_learning_rate, weight_decay=args.gate_weight_decay),
        "temperatures": _given(lr=args.temperature_learning_rate, weight_decay=args.temperature_weight_decay),
        "head": _given(lr=args.head_learning_rate, weight_decay=args.head_weight_decay),
    }
    groups = parameter_groups(model, args.learning_rate, args.weight_decay, own)
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    accelerator.print(f"{args.method}: {trained} trained parameters")
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, args.learning_rate, args.momentum)
        if args.optimizer == "sgd"
        else torch.optim.AdamW(groups, args.learning_rate)
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, args.warmup_epochs, args.num_train_epochs)
    model, optimizer, loader, eval_loader = accelerator.prepare(model, optimizer, loader, eval_loader)
    accelerator.register_for_checkpointing(schedule)
    keep_only_trainable(accelerator)
    if args.report_to:
        accelerator.init_trackers("gated_prompt", config={**vars(args), **vars(prompts)})

    step = resume(accelerator, args.resume_from_checkpoint, output / "checkpoints")

    shortcut = StartAtBlock(accelerator.unwrap_model(model)) if isinstance(train, CachedPrefix) else None
    if shortcut is not None:
        shortcut.open()
    begin, first_step = time.perf_counter(), step
    bar = tqdm(
        total=args.num_train_epochs * len(loader), initial=step, desc="train", disable=not accelerator.is_main_process
    )
    for epoch in range(step // len(loader), args.num_train_epochs):
        model.train()
        loader.set_epoch(epoch)
        if hasattr(train, "set_epoch"):
            train.set_epoch(epoch)
        done = step - epoch * len(loader)
        for pixels, labels in skip_first_batches(loader, done) if done else loader:
            loss = F.cross_entropy(model(pixels).logits, labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            bar.update()
            epoch_ends = step % len(loader) == 0
            if epoch_ends:
                bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{schedule.get_last_lr()[0]:.3g}")
                accelerator.log({"loss": loss.item(), "learning_rate": schedule.get_last_lr()[0]}, step=step)
                schedule.step()
            if is_due(args.checkpointing_steps, step, len(loader)):
                save_checkpoint(accelerator, output / "checkpoints", f"step_{step:08d}")
    bar.close()
    if shortcut is not None:
        shortcut.close()
    seconds = time.perf_counter() - begin

    accuracy = evaluate(model, eval_loader, len(task.class_names), accelerator)
    results: dict[str, Any] = {}
    if accelerator.is_main_process:
        results = {
            "task": task.name,
            "data": [task.train.provenance.to_dict(), task.eval.provenance.to_dict()],
            "class_names": task.class_names,
            "method": args.method,
            "accuracy": accuracy,
            "linear_probe_accuracy": None,
            "num_train": count,
            "num_eval": len(task.eval),
            "trained_parameters": trained,
            "train_seconds": round(seconds, 1),
            "steps": step - first_step,
            "settings": {**vars(args), **vars(prompts)},
            **environment(),
        }
        if args.linear_probe:
            backbone = AutoModel.from_pretrained(args.backbone, dtype="float32").eval().to(accelerator.device)
            results["linear_probe_accuracy"] = probe(
                patch_features(backbone, Subset(probed, range(count))), patch_features(backbone, scored)
            )
        metrics, notes = {"accuracy": accuracy}, _notes(results)
        write_results(output, accelerator.unwrap_model(model), before, results, metrics, notes)
        if args.push_to_hub:
            push(output, accelerator.unwrap_model(model), args.hub_model_id or output.name)
        print(f"accuracy of {args.method} on {task.eval.provenance.split}: {accuracy:.4f}")
        if args.linear_probe:
            print(f"accuracy of a linear probe: {results['linear_probe_accuracy']:.4f}")
        print(f"trained for {seconds:.0f} s; results.json and the trained weights are in {output}")
    accelerator.end_training()
    return results


def _given(**settings: float | None) -> dict[str, float]:
    return {name: value for name, value in settings.items() if value is not None}


def _notes(results: dict[str, Any]) -> str:
    train, scored = results["data"]
    probe_accuracy = results["linear_probe_accuracy"]
    beside = "" if probe_accuracy is None else f" That of a linear probe of the same backbone is {probe_accuracy:.4f}."
    return f"""## Training

{results["num_train"]} images of {train["split"]} to train on and {results["num_eval"]} of {scored["split"]} to score,
from {train["source"]}. The accuracy is that of the last epoch.{beside}"""
