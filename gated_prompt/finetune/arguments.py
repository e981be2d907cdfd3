# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The options of `gated-prompt train`, `probe` and `predict`. Neither PEFT nor torch is imported."""

from dataclasses import dataclass, field
from typing import Any

from ..command_line import CommandLine
from ..errors import GatedPromptError
from .recipe import BEST_METHOD, METHODS, PROMPT_STARTS
from .shared_arguments import RECOMMENDED, PartArguments, PromptArguments, TrainingArguments, option

PROBLEMS = ("auto", "single_label", "multi_label", "regression")
OLD_PROBLEMS = dict(zip(("classes", "labels", "numbers"), PROBLEMS[1:], strict=True))  # former names, still accepted


@dataclass
class DataArguments(PartArguments):
    """Where images and labels are, in a folder, a table or a data set, and how to divide them."""

    _argument_group_name = "images"

    train_dir: str | None = option("folder with a subfolder for each class, or with train/, validation/, test/", None)
    train_file: str | None = option(
        "CSV or JSONL with a column of paths and one of labels, instead of --train_dir", None
    )
    label_column: list[str] = field(
        default_factory=lambda: ["label"],
        metadata={"help": "column of the labels, or several columns of 0 and 1, one for each class or label"},
    )
    label_separator: str | None = option(
        "separator of the labels in a cell (default: whichever of ; , | occurs)", None
    )
    missing_labels: str = option(
        "what to do about images without a label. With keep, NA, null and -1 are names of classes",
        "refuse",
        ("refuse", "skip", "keep"),
    )
    problem: str = field(
        default="auto",
        metadata={
            "help": "one class per image, any number of labels, or numbers. With auto, the column decides",
            "choices": PROBLEMS,
            "old": OLD_PROBLEMS,
        },
    )
    split_seed: int = option("random seed of what is held back and of --shots", 0)
    shots: int | None = option("train on this many images of each class (default: all)", None)
    image_size: int | None = option("side in pixels (default: that of the backbone's processor)", None)


@dataclass
class RunArguments(TrainingArguments):
    """Which methods to train, and how."""

    read_block: str = option(
        "block whose output the head reads, counted from 0, or last, or best for the blocks with the best probe",
        RECOMMENDED.read_block,
    )
    methods: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"methods to train (default: {BEST_METHOD}, or gated where the backbone rules that out)",
            "choices": METHODS,
        },
    )
    prompt_start: str | None = option(
        "how prompts are initialized: random, or from training images (default: random for zero_start, else sample)",
        None,
        PROMPT_STARTS,
    )
    measure: str = option(
        "measure that decides: accuracy, balanced_accuracy or macro_f1 for classes. With auto, the first", "auto"
    )
    class_weights: str = option("balanced: rare classes count as much as frequent ones", "none", ("none", "balanced"))
    per_device_train_batch_size: int = option("images per process and step", RECOMMENDED.batch_size)
    per_device_eval_batch_size: int = option("images per process and step, to score", 64)
    learning_rate: str = option(
        "peak learning rate of the prompts, of LoRA or of the backbone. With auto, a short race chooses it", "auto"
    )
    head_learning_rate: float | None = option(
        "learning rate of the head (default: chosen by the race, or a tenth of --learning_rate)", None
    )
    label_smoothing: float = option("label smoothing for classes, in [0, 1)", 0.0)
    augment: bool = option("crop and flip at random while training", True)
    refit: bool = option(
        "choose by folds of all labelled images if no validation part is given, and fit what was chosen to all of "
        "them. With false, a part is held back, and what was fitted to the others is kept",
        True,
    )


def parse(argv: list[str] | None, description: str | None = None) -> tuple[DataArguments, RunArguments, Any]:
    """Parse the arguments of the data, the run and the prompts. The help begins with `description`.

    Raises:
        GatedPromptError: something is unknown, outside its range or contradicts something else. All of it is listed.
    """
    parser = CommandLine((DataArguments, RunArguments, PromptArguments), description)
    parser.set_defaults(
        num_virtual_tokens=RECOMMENDED.num_virtual_tokens,
        gate_init=RECOMMENDED.gate_init,
        insert_at=None,  # depends on the method and the block that is read
        prompt_dropout=None,  # depends on the method
    )
    data, run, prompts = parser.parse(argv)
    sources = [name for name in ("train_dir", "train_file", "dataset") if getattr(data, name) is not None]
    faults = []
    if len(sources) != 1:
        faults.append(f"give one of --train_dir, --train_file and --dataset, not {' and '.join(sources) or 'none'}.")
    if prompts.read_from is not None:
        faults.append(
            f"--read_from is {prompts.read_from}. Give --read_block {prompts.read_from}, which holds for every method."
        )
    faults += run.faults()
    if not 0 <= run.label_smoothing < 1:
        faults.append(f"--label_smoothing is {run.label_smoothing}. Expected a number in [0, 1).")
    if run.learning_rate != "auto" and not _is_rate(run.learning_rate):
        faults.append(f"--learning_rate is {run.learning_rate!r}. Expected 'auto' or a number above 0.")
    if len(set(data.label_column)) < len(data.label_column):
        faults.append(f"--label_column names a column twice: {' '.join(data.label_column)}.")
    if faults:
        raise GatedPromptError(" ".join(faults))
    return data, run, prompts


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


@dataclass
class PredictArguments:
    """Which images to classify with which adapters."""

    images: list[str] = field(default_factory=list, metadata={"help": "images, and folders of images"})
    adapters: list[str] = field(default_factory=list, metadata={"help": "output folders of gated-prompt train"})
    output: str = option("file to write, .csv or .jsonl", "predictions.csv")
    top: int = option("classes per line", 3)
    batch_size: int = option("images per pass", 32)
    backbone: str | None = option("Hub id or folder of the backbone (default: the one used in training)", None)
    trust_remote_code: bool = option("run Python code that the backbone brings", False)
    unlike: bool = option(
        "add a column: the share of the labelled images that are nearer to one another than the image is to them, "
        "with the probe of a run",
        False,
    )
    export: str | None = option("write this ONNX file instead, and compare its outputs with the model's", None)
