# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the classification scripts, and the settings of a preset where nothing else is given.

Recipe by default (paper, Appendix A; official code): SGD with momentum 0.9, no weight decay, one learning rate for
prompts, gates, temperatures and head; 100 epochs, 10 of them linear warm-up from 0, then a cosine to 0, stepped once
an epoch. Prompt dropout 0.1. The inside of the frozen blocks in eval mode.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from accelerate import PartialState

from gated_prompt import GatedPromptError
from gated_prompt.command_line import CommandLine
from gated_prompt.finetune.methods import BACKBONE_KINDS, HEAD_INITS, backbone_kind
from gated_prompt.finetune.recipe import BEST_METHOD, METHODS, PROMPT_METHODS, check_read_block, recommended
from gated_prompt.finetune.shared_arguments import PromptArguments, option
from gated_prompt.shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from gated_prompt.starts.initialize import METHODS as STARTS
from gated_prompt.training.checkpoints import check_interval

from .presets import PRESETS, paper_preset

WORKERS = 4  # processes that decode, as in the official code. Results do not depend on it


@dataclass
class RunArguments:
    """One training run. The settings of the prompts are those of `GatedPromptConfig`."""

    data_dir: str | None = option("folder with the data (default: the Hub)", None)
    backbone: str = option(BACKBONE_HELP, str(SHIPPED_BACKBONE))
    backbone_kind: str = option("for --preset and --pooling auto. auto takes it from the name", "auto", BACKBONE_KINDS)
    method: str = option("what is trained", "gated", METHODS)
    preset: str = option(
        "paper (batch size, prompts, learning rate and gate_init of the paper's Table 5, with the official code's "
        "head), or recommended (the recipe that docs/benchmark.md led to, for few images and epochs). Arguments that "
        "are given override it",
        "none",
        PRESETS,
    )
    read_block: str = option(
        "block whose output the head reads, counted from 0, or last, or best for the one with the best linear probe "
        "on validation images",
        "last",
    )
    output_dir: str = option("where everything is written", "runs/vtab")
    seed: int = option("random seed of head, prompts, order, crops and dropout", 42)
    num_train_epochs: int = option("passes over the training images", 100)
    warmup_epochs: int = option("epochs of linear warm-up. The first epoch runs at rate 0", 10)
    per_device_train_batch_size: int = option("images per process and step", 128)
    per_device_eval_batch_size: int = option("images per process and step, to score", 256)
    dataloader_num_workers: int = option("processes that decode images", 0)
    optimizer: str = option(
        "sgd, as in the paper, or adamw, which gets further in few epochs, at rates near 0.03", "sgd", ("sgd", "adamw")
    )
    learning_rate: float = option("peak learning rate. With SGD the paper tries 0.05 to 5", 0.03)
    prompt_learning_rate: float | None = option("learning rate of the prompts (default: --learning_rate)", None)
    gate_learning_rate: float | None = option("learning rate of the gates (default: --learning_rate)", None)
    temperature_learning_rate: float | None = option(
        "learning rate of the temperatures (default: --learning_rate)", None
    )
    head_learning_rate: float | None = option("learning rate of the head (default: --learning_rate)", None)
    momentum: float = option("momentum of SGD", 0.9)
    weight_decay: float = option("weight decay of everything that is trained", 0.0)
    schedule_by: str = option(
        "after what learning rates change: epoch, as in the paper, or step", "epoch", ("epoch", "step")
    )
    prompt_start: str = option(
        "how prompts are initialized: random, or from the training images", "random", ("random", *STARTS)
    )
    head_init: str = option(
        "model (transformers' initial head), kaiming (the official code's), or probe (a linear probe of what the head "
        "will see of the training images)",
        "model",
        HEAD_INITS,
    )
    lora_r: int = option("rank of --method lora", 8)
    max_train_samples: int | None = option("train on at most this many images, to try things (default: all)", None)
    curve: bool = option("score after every epoch too, and report the best epoch on validation", False)
    linear_probe: bool = option("score a linear probe on the same images as well", True)
    checkpointing_steps: str = option("'epoch', or a number of steps", "epoch")
    resume_from_checkpoint: str | None = option("checkpoint folder, or 'latest' (default: start anew)", None)
    report_to: str | None = option("tracker: tensorboard, wandb, trackio, ... (default: none)", None)
    push_to_hub: bool = option("upload the adapter folder when done", False)
    hub_model_id: str | None = option("repository to push to, user/name (default: the name of --output_dir)", None)


Arguments = TypeVar("Arguments", bound=RunArguments)


def parse_arguments(
    kind: type[Arguments], argv: list[str] | None, task_of: Callable[[Arguments], str]
) -> tuple[Arguments, Any]:
    """The run's arguments and those of the prompts, with the preset filled in where nothing was given.

    The help shows the docstring of the script that has `kind`.

    Raises:
        GatedPromptError: an option or a value is unknown. `--read_block` is no block. `--checkpointing_steps` is no
            interval. The preset has no settings for the task or the method, or an argument that was given contradicts
            the method.
    """
    parser = CommandLine((kind, PromptArguments), sys.modules[kind.__module__].__doc__)
    args, prompts = parser.parse(argv)
    check_interval(args.checkpointing_steps)
    check_read_block(args.read_block)
    # Parsed once more over marks, which the parser leaves where nothing was given.
    marks = argparse.Namespace(**dict.fromkeys((*vars(args), *vars(prompts)), argparse.SUPPRESS))
    given = {k: v for k, v in vars(parser.parse_args(argv, marks)).items() if v is not argparse.SUPPRESS}
    if args.preset == "recommended" and "method" not in given:
        args.method = BEST_METHOD
    for name, value in PROMPT_METHODS.get(args.method, {}).items():
        if given.get(name, value) != value:
            raise GatedPromptError(
                f"--{name} {given[name]} contradicts --method {args.method}. Leave one of them out."
            )
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
            f"--preset {preset} has batches of {batch_size} images, which {processes} processes cannot share equally. "
            "Give --per_device_train_batch_size, or start another number of processes."
        )
    return batch_size // processes
