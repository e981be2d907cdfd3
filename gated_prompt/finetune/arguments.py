# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The options of `gated-prompt train`, `probe` and `predict`. Neither PEFT nor torch is imported."""

from dataclasses import dataclass, field
from typing import Any

from ..command_line import CommandLine
from ..errors import GatedPromptError
from ..shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from .recipe import BEST_METHOD, METHODS, PROMPT_STARTS, recommended

RECOMMENDED = recommended(BEST_METHOD)
PROBLEMS = ("auto", "classes", "labels", "numbers")


def _help(text: str, default: Any, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text} | ({"choices": choices} if choices else {}))


@dataclass
class PromptArguments:
    """Settings of the prompts. They are repeated here because the config's own class needs PEFT and torch."""

    _argument_group_name = "prompts"

    num_virtual_tokens: int = _help("P, the number of prompt tokens (per block when deep)", 50)
    insert_at: int = _help(
        "index of the first block with prompts in its input; train and --preset recommended choose it by the block "
        "that is read",
        0,
    )
    read_from: int | None = _help(
        "index of the block whose output the head reads; later blocks do not run; default: the last", None
    )
    deep: bool = _help("VPT-deep: fresh prompts at each block from --insert_at on, without gates", False)
    zero_start: bool = _help(
        "with deep: the other tokens read the prompts in a softmax of their own, times tanh(a), one a for each head, "
        "0 at the start: the adapted model begins as the base",
        False,
    )
    gates: bool = _help("learn one gate per gated block (paper, Section 4)", True)
    gate_init: float = _help("initial gate logit; the paper's table value v means logit -v", -5.0)
    gated_blocks: list[int] | None = field(
        default=None,
        metadata={"help": "indices of the gated blocks; default: all with prompts but the last"},
    )
    hard_gates: bool = _help(
        "gates are sampled as 0 or 1 in training, and 1 if logit > 0 in eval mode (paper, Table 4)", False
    )
    temperature: bool = _help("learn one attention temperature per block from --insert_at on", True)
    temperature_init: float = _help("initial temperature; fixed with --temperature false", 1.0)
    temperature_range: list[float] = field(
        default_factory=lambda: [0.01, 10.0],
        metadata={"help": "low and high: learned temperatures are clamped to this range"},
    )
    prompt_dropout: float = _help(
        "dropout on the inserted prompts in training; train and --preset recommended: 0 for zero_start", 0.1
    )
    prompt_rank: int | None = _help("deprecated; r: the prompts are a product of (P, r) and (r, D)", None)
    pooling: str = _help(
        "mean that replaces token 0 before the final norm; auto: prompts_and_patches for MAE backbones, else none",
        "auto",
        ("auto", "none", "prompts", "patches", "prompts_and_patches"),
    )
    eval_backbone: bool = _help("keep the modules inside the frozen blocks in eval mode while training", True)
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules to train and save with the prompts; default: the detected head"}
    )
    target_modules: str | None = _help("dotted path of the list of blocks, if detection is ambiguous", None)
    num_prefix_tokens: int | None = _help("number of tokens before the patches; default: detected", None)


@dataclass
class DataArguments:
    """Images and labels: a folder, a table, or a data set, and how they are divided."""

    _argument_group_name = "images"

    train_dir: str | None = _help("folder with a subfolder for each class, or with train/, validation/, test/", None)
    validation_dir: str | None = _help("the same for validation; default: a part of the training images", None)
    test_dir: str | None = _help("the same for a test part, which is scored once, after all choices", None)
    train_file: str | None = _help(
        "CSV or JSONL with a column of paths and one of labels, instead of --train_dir", None
    )
    validation_file: str | None = _help("the same for validation", None)
    test_file: str | None = _help("the same for a test part", None)
    dataset: str | None = _help("Hub id or folder of a data set, instead of --train_dir", None)
    dataset_revision: str | None = _help("commit or tag of --dataset; default: the newest", None)
    train_split: str = _help("split of --dataset to train on", "train")
    validation_split: str | None = _help("split of --dataset for validation; default: a part of --train_split", None)
    test_split: str | None = _help("split of --dataset that is scored once; default: none", None)
    image_column: str = _help("column of the images in a file or data set", "image")
    label_column: list[str] = field(
        default_factory=lambda: ["label"],
        metadata={"help": "column of the labels, or several columns of 0 and 1, one for each class or label"},
    )
    label_separator: str | None = _help("between the labels of a cell; default: the one of ; , | that occurs", None)
    missing_labels: str = _help(
        "what to do about images without a label; keep: NA, null and -1 are classes",
        "refuse",
        ("refuse", "skip", "keep"),
    )
    problem: str = _help("classes, labels (several for an image), numbers, or auto: by the column", "auto", PROBLEMS)
    validation_share: float = _help(
        "part of the images that each fold holds back where no validation part is given", 0.2
    )
    split_seed: int = _help("random seed of what is held back and of --shots", 0)
    shots: int | None = _help("train on this many images of each class; default: all", None)
    image_size: int | None = _help("side in pixels; default: that of the backbone's processor", None)


@dataclass
class RunArguments:
    """What is trained on them, and how."""

    _argument_group_name = "training"

    backbone: str = _help(BACKBONE_HELP, str(SHIPPED_BACKBONE))
    read_block: str = _help(
        "block after which the head reads, from 0; best: block or blocks with the best probe; or last",
        RECOMMENDED.read_block,
    )
    methods: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"what is trained; default: {BEST_METHOD}, or gated where a backbone rules that out",
            "choices": METHODS,
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "random seeds; each method is trained once with each"}
    )
    output_dir: str = _help(
        "where everything is written; repeat the command to resume a run that was stopped", "runs/images"
    )
    cache_dir: str = _help("where features are kept from run to run", "runs/features")
    prompt_start: str | None = _help(
        "how prompts are initialized: random, or from training images; default: random for zero_start, else sample",
        None,
        PROMPT_STARTS,
    )
    measure: str = _help("what decides: accuracy, balanced_accuracy or macro_f1 for classes; auto: the first", "auto")
    class_weights: str = _help("balanced: rare classes count as much as frequent ones", "none", ("none", "balanced"))
    num_train_epochs: int = _help("passes over the training images", RECOMMENDED.num_train_epochs)
    warmup_ratio: float = _help(
        "part of the steps with a rising rate, before the cosine",
        RECOMMENDED.warmup_epochs / RECOMMENDED.num_train_epochs,
    )
    per_device_train_batch_size: int = _help("images per process and step", RECOMMENDED.batch_size)
    per_device_eval_batch_size: int = _help("images per process and step, to score", 64)
    gradient_accumulation_steps: int = _help("batches per optimizer step", 1)
    dataloader_num_workers: int = _help("processes that decode images", 0)
    learning_rate: str = _help(
        "peak learning rate of the prompts, of LoRA or of the backbone; auto: chosen by a short race", "auto"
    )
    head_learning_rate: float | None = _help(
        "learning rate of the head; default: chosen by the race, or a tenth of --learning_rate", None
    )
    weight_decay: float = _help("weight decay of everything that is trained", 0.0)
    label_smoothing: float = _help("label smoothing for classes, in [0, 1)", 0.0)
    augment: bool = _help("crop and flip at random while training", True)
    patience: int = _help("epochs without a better validation measure before a run ends", 10)
    ema_decay: float | None = _help(
        "score and keep a moving average of the weights, with a decay such as 0.99; default: no average", None
    )
    trust_remote_code: bool = _help("run Python code that the backbone brings", False)
    refit: bool = _help(
        "choose by folds of all labelled images, where no validation part is given, and fit what was chosen to all of "
        "them; false: hold a part back, and keep what was fitted to the others",
        True,
    )
    lora_r: int = _help("rank of --methods lora", 8)
    report_to: str | None = _help("tracker: tensorboard, wandb, trackio, ...; default: none", None)


def parse(argv: list[str] | None, description: str | None = None) -> tuple[DataArguments, RunArguments, Any]:
    """Arguments of the data, the run and the prompts. `description` is that of the help.

    Raises:
        GatedPromptError: something is unknown, outside its range or contradicts something else. All of it is listed.
    """
    parser = CommandLine((DataArguments, RunArguments, PromptArguments), description)
    parser.set_defaults(
        num_virtual_tokens=RECOMMENDED.num_virtual_tokens,
        gate_init=RECOMMENDED.gate_init,
        insert_at=None,  # by method and the block that is read
        prompt_dropout=None,  # by method
    )
    data, run, prompts = parser.parse(argv)
    sources = [name for name in ("train_dir", "train_file", "dataset") if getattr(data, name) is not None]
    faults = []
    if len(sources) != 1:
        faults.append(f"give one of --train_dir, --train_file and --dataset, not {' and '.join(sources) or 'none'}")
    if prompts.read_from is not None:
        faults.append(
            f"--read_from is {prompts.read_from}; give --read_block {prompts.read_from}, which holds for every method"
        )
    least = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "patience": 1,
        "dataloader_num_workers": 0,
        "weight_decay": 0,
    }
    faults += [
        f"--{n} is {getattr(run, n)}; at least {low} is needed" for n, low in least.items() if getattr(run, n) < low
    ]
    for name in ("label_smoothing", "warmup_ratio"):
        if not 0 <= getattr(run, name) < 1:
            faults.append(f"--{name} is {getattr(run, name)}; it lies in [0, 1)")
    if run.learning_rate != "auto" and not _is_rate(run.learning_rate):
        faults.append(f"--learning_rate is {run.learning_rate!r}; 'auto' or a number above 0 is needed")
    if len(set(run.methods)) < len(run.methods) or len(set(run.seeds)) < len(run.seeds):
        faults.append("a method or a seed is given twice")
    if len(set(data.label_column)) < len(data.label_column):
        faults.append(f"--label_column names a column twice: {' '.join(data.label_column)}")
    if faults:
        raise GatedPromptError("; ".join(faults))
    return data, run, prompts


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


@dataclass
class PredictArguments:
    """What to predict with what."""

    images: list[str] = field(default_factory=list, metadata={"help": "images, and folders of images"})
    adapters: list[str] = field(default_factory=list, metadata={"help": "output folders of gated-prompt train"})
    output: str = _help("file to write, .csv or .jsonl", "predictions.csv")
    top: int = _help("classes per line", 3)
    batch_size: int = _help("images per pass", 32)
    backbone: str | None = _help("Hub id or folder of the backbone; default: the one used in training", None)
    trust_remote_code: bool = _help("run Python code that the backbone brings", False)
    export: str | None = _help("write this ONNX file instead, and compare its outputs with the model's", None)
