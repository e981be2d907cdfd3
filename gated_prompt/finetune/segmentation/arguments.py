# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The options of `gated-prompt train` and `predict` where images have label maps. Torch is not imported."""

from dataclasses import dataclass, field
from typing import Any

from ...command_line import CommandLine
from ...errors import GatedPromptError
from ...shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from ..arguments import PromptArguments
from ..recipe import BEST_METHOD, PROMPT_METHODS

CONV = "conv"
METHODS = (*PROMPT_METHODS, "lora", "full", CONV)
LOSSES = ("ce", "ce_dice")


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class MaskArguments:
    """Images and label maps, and how they are divided."""

    _argument_group_name = "images and masks"

    train_dir: str | None = _help(
        "folder with images/ and masks/ (or annotations/), which may be divided into train/, validation/ and test/",
        None,
    )
    validation_dir: str | None = _help("the same for validation; default: a part of the training images", None)
    test_dir: str | None = _help("the same for a test part, which is scored once, after all choices", None)
    train_file: str | None = _help("JSON of COCO with polygons or run lengths, instead of masks in --train_dir", None)
    validation_file: str | None = _help("the same for validation", None)
    test_file: str | None = _help("the same for a test part", None)
    dataset: str | None = _help("Hub id or folder of a data set, instead of --train_dir", None)
    dataset_revision: str | None = _help("commit or tag of --dataset; default: the newest", None)
    train_split: str = _help("split of --dataset to train on", "train")
    validation_split: str | None = _help("split of --dataset for validation; default: a part of --train_split", None)
    test_split: str | None = _help("split of --dataset that is scored once; default: none", None)
    image_column: str = _help("column of the images in a data set", "image")
    label_column: str = _help("column of the label maps", "label")
    classes: str | None = _help(
        "file with the name of a class on each line; default: classes.txt in --train_dir", None
    )
    palette: str | None = _help(
        "CSV file with name, red, green and blue of each class, for masks that are colours", None
    )
    ignore_label: list[str] = field(
        default_factory=list, metadata={"help": "values or names of classes that are not to count; 255 never does"}
    )
    problem: str = _help("segmentation; or auto, where images/ and masks/ lie side by side", "auto")
    validation_share: float = _help("part of the images that is held back where no validation part is given", 0.2)
    split_seed: int = _help("random seed of what is held back", 0)
    image_size: int | None = _help(
        "short side in pixels, rounded to patches; default: 8/7 of the side of the backbone's processor", None
    )


@dataclass
class SegmentationArguments:
    """What is trained on them, and how."""

    _argument_group_name = "training"

    backbone: str = _help(BACKBONE_HELP, str(SHIPPED_BACKBONE))
    blocks: list[int] = field(
        default_factory=list,
        metadata={"help": "blocks that the head reads, from 0; default: the set whose linear map is the best"},
    )
    methods: list[str] = field(
        default_factory=lambda: [BEST_METHOD],
        metadata={"help": f"any of: {', '.join(METHODS)}; none: the frozen backbone alone"},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "each method is trained once with each"})
    output_dir: str = _help(
        "where everything is written; repeat the command to resume a run that was stopped", "runs/segmentation"
    )
    cache_dir: str = _help("where features are kept from run to run", "runs/features")
    loss: str = _help("ce: cross entropy; ce_dice: plus Dice, which counts every class alike", "ce")
    class_weights: str = _help("balanced: rare classes count more (square root of their share); or none", "none")
    num_train_epochs: int = _help("passes over the training images", 8)
    warmup_ratio: float = _help("part of the steps with a rising rate, before the cosine", 0.1)
    per_device_train_batch_size: int = _help("crops per process and step", 4)
    per_device_eval_batch_size: int = _help("windows per process and pass", 4)
    dataloader_num_workers: int = _help("processes that decode images", 0)
    learning_rate: float | None = _help("peak rate of prompts, LoRA, backbone; default: by method", None)
    head_learning_rate: float | None = _help("peak rate of the head; default: by method", None)
    weight_decay: float = _help("weight decay of everything that is trained", 0.0)
    augment: bool = _help("flip, scale, crop and change colours at random while training", True)
    refit: bool = _help("train once more on training and validation images, with what was chosen", True)
    lora_r: int = _help("rank of --methods lora", 8)
    report_to: str | None = _help("tracker: tensorboard, wandb, trackio, ...; default: none", None)


@dataclass
class MaskPredictArguments:
    """What to segment with what."""

    images: list[str] = field(default_factory=list, metadata={"help": "images, and folders of images"})
    adapters: list[str] = field(default_factory=list, metadata={"help": "output folders of gated-prompt train"})
    output: str = _help("folder to write; a folder in it for each adapter", "masks")
    overlays: bool = _help("write each label map over its image as well", True)
    backbone: str | None = _help("Hub id or folder of the backbone; default: the one used in training", None)
    export: str | None = _help("write this ONNX file instead, for images of the size of the first of --images", None)


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
        faults.append("give one of --train_dir, --train_file and --dataset")
    if data.classes is not None and data.palette is not None:
        faults.append("--palette names the classes; leave out --classes")
    if prompts.read_from is not None:
        faults.append("--read_from follows from --blocks; leave it out")
    strangers = [method for method in run.methods if method not in (*METHODS, "none")]
    if strangers:
        faults.append(f"--methods {strangers[0]!r} is unknown; known: {', '.join(METHODS)}, none")
    if run.loss not in LOSSES:
        faults.append(f"--loss is {run.loss!r}; known: {', '.join(LOSSES)}")
    if run.class_weights not in ("none", "balanced"):
        faults.append(f"--class_weights is {run.class_weights!r}; known: none, balanced")
    counts = ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "lora_r")
    faults += [f"--{name} is {getattr(run, name)}; at least 1 is needed" for name in counts if getattr(run, name) < 1]
    if not 0 <= run.warmup_ratio < 1:
        faults.append(f"--warmup_ratio is {run.warmup_ratio}; it lies in [0, 1)")
    rates = {"learning_rate": run.learning_rate, "head_learning_rate": run.head_learning_rate}
    faults += [
        f"--{n} is {rate}; a number above 0 is needed" for n, rate in rates.items() if rate is not None and rate <= 0
    ]
    if len(set(run.methods)) < len(run.methods) or len(set(run.seeds)) < len(run.seeds):
        faults.append("a method or a seed is given twice")
    if data.problem not in ("auto", "segmentation"):
        faults.append(f"--problem is {data.problem!r}; these are label maps: segmentation")
    if faults:
        raise GatedPromptError("; ".join(faults))
    run.methods = [method for method in run.methods if method != "none"]
    return data, run, prompts
