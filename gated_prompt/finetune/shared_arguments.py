# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Options that training on classes and on label maps share: of prompts, of the data, of the training.

Neither PEFT nor torch is imported.
"""

from dataclasses import dataclass, field
from typing import Any

from ..shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from .recipe import BEST_METHOD, recommended

RECOMMENDED = recommended(BEST_METHOD)


def option(text: str, default: Any, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text} | ({"choices": choices} if choices else {}))


@dataclass
class PromptArguments:
    """Settings of the prompts. They are repeated here because the config's own class needs PEFT and torch."""

    _argument_group_name = "prompts"

    num_virtual_tokens: int = option("P, the number of prompt tokens (per block when deep)", 50)
    insert_at: int = option(
        "index of the first block with prompts in its input. gated-prompt train and --preset recommended choose it "
        "by the block that is read",
        0,
    )
    read_from: int | None = option(
        "index of the block whose output the head reads. Later blocks do not run (default: the last)", None
    )
    deep: bool = option("VPT-deep: fresh prompts at each block from --insert_at on, without gates", False)
    zero_start: bool = option(
        "with deep, the other tokens read the prompts in a separate softmax, times tanh(a), one a for each head, "
        "0 at the start, so that the adapted model begins as the base",
        False,
    )
    gates: bool = option("learn one gate per gated block (paper, Section 4)", True)
    gate_init: float = option("initial gate logit. The paper's table value v means logit -v", -5.0)
    gated_blocks: list[int] | None = field(
        default=None,
        metadata={"help": "indices of the gated blocks (default: all with prompts but the last)"},
    )
    hard_gates: bool = option(
        "gates are sampled as 0 or 1 in training, and 1 if logit > 0 in eval mode (paper, Table 4)", False
    )
    temperature: bool = option("learn one attention temperature per block from --insert_at on", True)
    temperature_init: float = option("initial temperature, which stays fixed with --temperature false", 1.0)
    temperature_range: list[float] = field(
        default_factory=lambda: [0.01, 10.0],
        metadata={"help": "low and high: learned temperatures are clamped to this range"},
    )
    prompt_dropout: float = option(
        "dropout on the inserted prompts in training. gated-prompt train and --preset recommended use 0 for "
        "zero_start",
        0.1,
    )
    prompt_rank: int | None = option("deprecated: r, with which the prompts are a product of (P, r) and (r, D)", None)
    pooling: str = option(
        "mean that replaces token 0 before the final norm. auto is prompts_and_patches for MAE backbones, else none",
        "auto",
        ("auto", "none", "prompts", "patches", "prompts_and_patches"),
    )
    eval_backbone: bool = option("keep the modules inside the frozen blocks in eval mode while training", True)
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules to train and save with the prompts (default: the detected head)"}
    )
    target_modules: str | None = option("dotted path of the list of blocks, if detection is ambiguous", None)
    num_prefix_tokens: int | None = option("number of tokens before the patches (default: detected)", None)


@dataclass
class PartArguments:
    """Where the parts of the data lie, of images with labels as of images with label maps."""

    train_dir: str | None = None
    validation_dir: str | None = option("the same for validation (default: a part of the training images)", None)
    test_dir: str | None = option("the same for a test part, which is scored once, after all choices", None)
    train_file: str | None = None
    validation_file: str | None = option("the same for validation", None)
    test_file: str | None = option("the same for a test part", None)
    dataset: str | None = option("Hub id or folder of a data set, instead of --train_dir", None)
    dataset_revision: str | None = option("commit or tag of --dataset (default: the newest)", None)
    train_split: str = option("split of --dataset to train on", "train")
    validation_split: str | None = option("split of --dataset for validation (default: a part of --train_split)", None)
    test_split: str | None = option("split of --dataset that is scored once (default: none)", None)
    image_column: str = option("column of the images in a file or data set", "image")
    validation_share: float = option(
        "part of the images that each fold holds back where no validation part is given", 0.2
    )
    split_seed: int = option("random seed of what is held back", 0)


@dataclass
class TrainingArguments:
    """How methods are trained, whatever is predicted."""

    _argument_group_name = "training"

    backbone: str = option(BACKBONE_HELP, str(SHIPPED_BACKBONE))
    trust_remote_code: bool = option("run Python code that the backbone brings", False)
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "random seeds. Each method is trained once with each seed"}
    )
    output_dir: str = option(
        "folder for everything that is written. Repeat the command to resume a run that was stopped", "runs/images"
    )
    cache_dir: str = option("where features are kept from run to run", "runs/features")
    methods: list[str] = field(default_factory=list)
    num_train_epochs: int = option("passes over the training images", RECOMMENDED.num_train_epochs)
    per_device_train_batch_size: int = RECOMMENDED.batch_size
    per_device_eval_batch_size: int = RECOMMENDED.batch_size
    warmup_ratio: float = option(
        "part of the steps with a rising rate, before the cosine",
        RECOMMENDED.warmup_epochs / RECOMMENDED.num_train_epochs,
    )
    gradient_accumulation_steps: int = option("batches per optimizer step", 1)
    dataloader_num_workers: int = option("processes that decode images", 0)
    weight_decay: float = option("weight decay of everything that is trained", 0.0)
    patience: int = option("epochs without a better validation measure before a run ends", 10)
    ema_decay: float | None = option(
        "score and keep a moving average of the weights, with a decay such as 0.99 (default: no average)", None
    )
    lora_r: int = option("rank of --methods lora", 8)
    report_to: str | None = option("tracker: tensorboard, wandb, trackio, ... (default: none)", None)

    def faults(self) -> list[str]:
        """What is outside its range, or given twice."""
        least = {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "patience": 1,
            "lora_r": 1,
            "dataloader_num_workers": 0,
            "weight_decay": 0,
        }
        found = {name: getattr(self, name) for name in least}
        faults = [f"--{n} is {found[n]}. Expected at least {low}." for n, low in least.items() if found[n] < low]
        if not 0 <= self.warmup_ratio < 1:
            faults.append(f"--warmup_ratio is {self.warmup_ratio}. Expected a number in [0, 1).")
        if len(set(self.methods)) < len(self.methods) or len(set(self.seeds)) < len(self.seeds):
            faults.append("A method or a seed is given twice. Give each once.")
        return faults
