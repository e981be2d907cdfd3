# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The options of `gated-prompt train` and `predict` where images have label maps. Torch is not imported."""

from dataclasses import dataclass, field
from typing import Any

from ...command_line import CommandLine
from ...errors import GatedPromptError
from ..recipe import BEST_METHOD, PROMPT_METHODS
from ..shared_arguments import PartArguments, PromptArguments, TrainingArguments, option

CONV = "conv"
METHODS = (*PROMPT_METHODS, "lora", "full", CONV)
LOSSES = ("ce", "ce_dice")


@dataclass
class MaskArguments(PartArguments):
    """Images and label maps, and how they are divided."""

    _argument_group_name = "images and masks"

    train_dir: str | None = option(
        "folder with images/ and masks/ (or annotations/), which may be divided into train/, validation/ and test/",
        None,
    )
    train_file: str | None = option("JSON of COCO with polygons or run lengths, instead of masks in --train_dir", None)
    label_column: str = option("column of the label maps", "label")
    classes: str | None = option(
        "file with the name of a class on each line (default: classes.txt in --train_dir)", None
    )
    palette: str | None = option(
        "CSV file with name, red, green and blue of each class, for masks that are colours", None
    )
    ignore_label: list[str] = field(
        default_factory=list, metadata={"help": "values or names of classes that do not count. 255 never counts"}
    )
    problem: str = option("segmentation, or auto if images/ and masks/ lie side by side", "auto")
    image_size: int | None = option(
        "short side in pixels, rounded to patches (default: 8/7 of the side of the backbone's processor)", None
    )


@dataclass
class SegmentationArguments(TrainingArguments):
    """Which methods to train, and how."""

    blocks: list[int] = field(
        default_factory=list,
        metadata={"help": "blocks that the head reads, from 0 (default: the set whose linear map is the best)"},
    )
    methods: list[str] = field(
        default_factory=lambda: [BEST_METHOD],
        metadata={"help": f"any of: {', '.join(METHODS)}, or none for the frozen backbone alone"},
    )
    output_dir: str = option(
        "folder for everything that is written. Repeat the command to resume a run that was stopped",
        "runs/segmentation",
    )
    loss: str = option("ce (cross entropy), or ce_dice, which adds Dice and so counts every class alike", "ce")
    class_weights: str = option(
        "none, or balanced, with which rare classes count more (square root of their share)", "none"
    )
    num_train_epochs: int = option("passes over the training images", 8)
    per_device_train_batch_size: int = option("crops per process and step", 4)
    per_device_eval_batch_size: int = option("windows per process and pass", 4)
    learning_rate: float | None = option("peak rate of prompts, LoRA, backbone (default: by method)", None)
    head_learning_rate: float | None = option("peak rate of the head (default: by method)", None)
    augment: bool = option("flip, scale, crop and change colours at random while training", True)
    refit: bool = option("train once more on training and validation images, with what was chosen", True)


@dataclass
class MaskPredictArguments:
    """Which images to segment with which adapters."""

    images: list[str] = field(default_factory=list, metadata={"help": "images, and folders of images"})
    adapters: list[str] = field(default_factory=list, metadata={"help": "output folders of gated-prompt train"})
    output: str = option("folder to write, with a subfolder for each adapter", "masks")
    trust_remote_code: bool = option("run Python code that the backbone brings", False)
    overlays: bool = option("write each label map over its image as well", True)
    backbone: str | None = option("Hub id or folder of the backbone (default: the one used in training)", None)
    export: str | None = option("write this ONNX file instead, for images of the size of the first of --images", None)


def parse(argv: list[str] | None, description: str | None = None) -> tuple[MaskArguments, SegmentationArguments, Any]:
    """Arguments of the data, the run and the prompts.

    Raises:
        GatedPromptError: something is unknown, outside its range or contradicts something else. All of it is listed.
    """
    parser = CommandLine((MaskArguments, SegmentationArguments, PromptArguments), description)
    parser.set_defaults(num_virtual_tokens=10, gate_init=-3.0, insert_at=None, prompt_dropout=0.0)
    data, run, prompts = parser.parse(argv)
    faults = []
    if data.train_file is None and (data.train_dir is None) == (data.dataset is None):
        faults.append("give one of --train_dir, --train_file and --dataset.")
    if data.classes is not None and data.palette is not None:
        faults.append("--palette names the classes. Leave out --classes.")
    if prompts.read_from is not None:
        faults.append("--read_from follows from --blocks. Leave it out.")
    strangers = [method for method in run.methods if method not in (*METHODS, "none")]
    if strangers:
        faults.append(f"--methods {strangers[0]!r} is unknown. Choose from: {', '.join(METHODS)}, none.")
    if run.loss not in LOSSES:
        faults.append(f"--loss is {run.loss!r}. Choose from: {', '.join(LOSSES)}.")
    if run.class_weights not in ("none", "balanced"):
        faults.append(f"--class_weights is {run.class_weights!r}. Choose from: none, balanced.")
    faults += run.faults()
    rates = {"learning_rate": run.learning_rate, "head_learning_rate": run.head_learning_rate}
    faults += [
        f"--{n} is {rate}. Expected a number above 0." for n, rate in rates.items() if rate is not None and rate <= 0
    ]
    if data.problem not in ("auto", "segmentation"):
        faults.append(f"--problem is {data.problem!r}. For label maps, give segmentation.")
    if faults:
        raise GatedPromptError(" ".join(faults))
    run.methods = [method for method in run.methods if method != "none"]
    return data, run, prompts
