# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the classification scripts, and the settings of a preset where nothing else is given.

Recipe by default (paper, Appendix A; official code): SGD with momentum 0.9, no weight decay, one learning rate for
prompts, gates, temperatures and head; 100 epochs, 10 of them linear warm-up from 0, then a cosine to 0, stepped once
an epoch. Prompt dropout 0.1. The inside of the frozen blocks in eval mode.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from accelerate import PartialState

from gated_prompt import GatedPromptError
from gated_prompt.command_line import CommandLine
from gated_prompt.finetune.methods import backbone_kind
from gated_prompt.finetune.recipe import (
    BEST_METHOD,
    METHODS,
    PROMPT_METHODS,
    check_method,
    check_read_block,
    recommended,
)
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from gated_prompt.starts.initialize import METHODS as STARTS
from gated_prompt.training.checkpoints import check_interval

from .presets import PRESETS, paper_preset

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("epoch", "step")
WORKERS = 4  # processes that decode, as in the official code. Results do not depend on it


@dataclass
class RunArguments:
    """One training run. The settings of the prompts are those of `GatedPromptConfig`."""

    data_dir: str | None = field(default=None, metadata={"help": "folder with the data; default: the Hub"})
    backbone: str = field(default=str(SHIPPED_BACKBONE), metadata={"help": BACKBONE_HELP})
    backbone_kind: str = field(
        default="auto", metadata={"help": "mae or moco, for --preset and --pooling auto; auto: by the name; or other"}
    )
    method: str = field(default="gated", metadata={"help": f"one of: {', '.join(METHODS)}"})
    preset: str = field(
        default="none",
        metadata={
            "help": "paper: batch size, prompts, learning rate and gate_init of the paper's Table 5, with the "
            "official code's head; recommended: the recipe that docs/benchmark.md led to, for few images and epochs; "
            "arguments that are given win"
        },
    )
    read_block: str = field(
        default="last",
        metadata={
            "help": "block whose output the head reads, from 0; best: that with the best linear probe on validation "
            "images; or last"
        },
    )
    output_dir: str = field(default="runs/vtab", metadata={"help": "where everything is written"})
    seed: int = field(default=42, metadata={"help": "random seed of head, prompts, order, crops and dropout"})
    num_train_epochs: int = field(default=100, metadata={"help": "passes over the training images"})
    warmup_epochs: int = field(default=10, metadata={"help": "epochs of linear warm-up; the first runs at rate 0"})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "images per process and step"})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "images per process and step, to score"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    optimizer: str = field(
        default="sgd",
        metadata={"help": "sgd: the paper's; or adamw, which gets further in few epochs, at rates near 0.03"},
    )
    learning_rate: float = field(
        default=0.03, metadata={"help": "peak learning rate; with SGD the paper tries 0.05 to 5"}
    )
    prompt_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the prompts; default: --learning_rate"}
    )
    gate_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the gates; default: --learning_rate"}
    )
    temperature_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the temperatures; default: --learning_rate"}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the head; default: --learning_rate"}
    )
    momentum: float = field(default=0.9, metadata={"help": "momentum of SGD"})
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay of everything that is trained"})
    prompt_weight_decay: float | None = field(
        default=None, metadata={"help": "weight decay of the prompts; default: --weight_decay"}
    )
    gate_weight_decay: float | None = field(
        default=None, metadata={"help": "weight decay of the gates; default: --weight_decay"}
    )
    temperature_weight_decay: float | None = field(
        default=None, metadata={"help": "weight decay of the temperatures; default: --weight_decay"}
    )
    head_weight_decay: float | None = field(
        default=None, metadata={"help": "weight decay of the head; default: --weight_decay"}
    )
    schedule_by: str = field(
        default="epoch", metadata={"help": "after what learning rates change: epoch, as in the paper, or step"}
    )
    prompt_start: str = field(
        default="random",
        metadata={"help": f"how prompts are initialized: random; or from the training images, by {', '.join(STARTS)}"},
    )
    head_init: str = field(
        default="model",
        metadata={
            "help": "model: transformers' initial head; kaiming: the official code's; probe: a linear probe of what "
            "the head will see of the training images"
        },
    )
    lora_r: int = field(default=8, metadata={"help": "rank of --method lora"})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on at most this many images, to try things; default: all"}
    )
    curve: bool = field(
        default=False, metadata={"help": "score after every epoch too, and report the best epoch on validation"}
    )
    linear_probe: bool = field(default=True, metadata={"help": "score a linear probe on the same images as well"})
    checkpointing_steps: str = field(default="epoch", metadata={"help": "'epoch', or a number of steps"})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "checkpoint folder, or 'latest'; default: start anew"}
    )
    report_to: str | None = field(
        default=None, metadata={"help": "tracker: tensorboard, wandb, trackio, ...; default: none"}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "upload the adapter folder when done"})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "repository to push to, user/name; default: the name of --output_dir"}
    )


Arguments = TypeVar("Arguments", bound=RunArguments)


def parse_arguments(
    kind: type[Arguments], argv: list[str] | None, task_of: Callable[[Arguments], str]
) -> tuple[Arguments, Any]:
    """The run's arguments and those of the prompts, with the preset filled in where nothing was given.

    The help shows the docstring of the script that has `kind`.

    Raises:
        GatedPromptError: an option, method, optimizer, preset, start, schedule or kind of backbone is unknown.
            `--read_block` is no block. `--checkpointing_steps` is no interval. The preset has no settings for the task
            or the method, or an argument that was given contradicts the method.
    """
    parser = CommandLine((kind, PromptArguments), sys.modules[kind.__module__].__doc__)
    args, prompts = parser.parse(argv)
    check_method(args.method)
    check_interval(args.checkpointing_steps)
    check_read_block(args.read_block)
    known = {"optimizer": OPTIMIZERS, "schedule_by": SCHEDULES, "prompt_start": ("random", *STARTS), "preset": PRESETS}
    for name, values in known.items():
        if getattr(args, name) not in values:
            raise GatedPromptError(f"unknown --{name} {getattr(args, name)!r}; known: {', '.join(values)}")
    # Parsed once more over marks, which the parser leaves where nothing was given.
    marks = argparse.Namespace(**dict.fromkeys((*vars(args), *vars(prompts)), argparse.SUPPRESS))
    given = {k: v for k, v in vars(parser.parse_args(argv, marks)).items() if v is not argparse.SUPPRESS}
    if args.preset == "recommended" and "method" not in given:
        args.method = BEST_METHOD
    for name, value in PROMPT_METHODS.get(args.method, {}).items():
        if given.get(name, value) != value:
            raise GatedPromptError(f"--{name} {given[name]} contradicts --method {args.method}; leave one of them out")
    chosen = _preset(args, task_of)
    if "batch_size" in chosen and "per_device_train_batch_size" not in given:
        args.per_device_train_batch_size = _share(args.preset, chosen["batch_size"])
    for name, value in chosen.items():
        holder = prompts if hasattr(prompts, name) else args
        if name not in given and hasattr(holder, name):
            setattr(holder, name, value)
    if "read_from" in given and "read_block" not in given:
        args.read_block = "last"  # of those that run
    return args, prompts


def _preset(args: RunArguments, task_of: Callable[[Any], str]) -> dict[str, Any]:
    """The settings of `--preset` by argument. Arguments that this script lacks are left out."""
    if args.preset == "paper":
        paper = paper_preset(task_of(args), backbone_kind(args.backbone, args.backbone_kind), args.method)
        return {
            "batch_size": paper.batch_size,
            "learning_rate": paper.learning_rate,
            "head_init": "kaiming",
            "num_virtual_tokens": paper.num_virtual_tokens,
            "gate_init": paper.gate_init,
            "dataloader_num_workers": WORKERS,
        }
    if args.preset == "none":
        return {}
    if args.method not in PROMPT_METHODS:
        raise GatedPromptError(f"--preset recommended is for prompts, and --method {args.method} has none")
    recipe = recommended(args.method)
    return {
        **asdict(recipe),
        "head_learning_rate": recipe.head_share * recipe.learning_rate,
        "insert_at": None,
        "optimizer": "adamw",
        "schedule_by": "step",
        "head_init": "probe",
        "cache_prefix": True,
    }


def _share(preset: str, batch_size: int) -> int:
    """Images of each process and step."""
    processes = PartialState().num_processes
    if batch_size % processes:
        raise GatedPromptError(
            f"--preset {preset} has batches of {batch_size} images, which {processes} processes cannot share equally; "
            "give --per_device_train_batch_size, or start another number of processes"
        )
    return batch_size // processes
