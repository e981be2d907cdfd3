# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Train an adapter for the demo page on a folder of images.

    accelerate launch examples/demo/train_adapter.py --task pets --data_dir photos --output_dir runs/pets

The folder is one that `datasets` reads: subfolders by part and class (`train/cat/1.jpg`, `test/cat/7.jpg`), or Parquet
files with the columns `image` and `label`. All else is as in train_vtab.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gated_prompt.data.hub import HubImages, open_table
from gated_prompt.errors import DataError
from gated_prompt.images import LabelledImages, Provenance
from gated_prompt.sharing.backbone import quiet_loading
from gated_prompt.training.checkpoints import prepare_output_dir
from gated_prompt.training.loop import make_accelerator
from gated_prompt.transforms import CachedImages, TransformedImages
from paper.arguments import RunArguments, parse_arguments
from paper.classification import build, train_and_score
from paper.probe import settle_blocks
from paper.tasks import Task, transform_for


@dataclass
class Arguments(RunArguments):
    """What to train on what. `--data_dir` is needed. A part can be cut, as `datasets` does it: `train[:1000]`."""

    task: str = field(default="images", metadata={"help": "your name for the task, for card and results"})
    train_split: str = field(default="train", metadata={"help": "part to train on"})
    eval_split: str = field(default="test", metadata={"help": "part to score"})


def load_part(task: str, folder: Path, split: str) -> LabelledImages:
    """One part of a folder of images.

    Raises:
        DataError: it cannot be read, has no such part, or the images have no classes.
    """
    table = open_table(task, split, path=folder)
    table.require(["image", "label"])
    names = table.class_names("label")
    if names is None:
        raise DataError(f"the labels in {folder} have no names; use subfolders by class, as in {split}/cat/1.jpg")
    images = HubImages([table], "image", [(0, row) for row in range(len(table))])
    origin = Provenance(task, split, folder.name, None, True, "", count=len(table), expected_count=None)
    return LabelledImages(images, table.values("label"), num_classes=len(names), class_names=names, provenance=origin)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None: those of the command line) and return the content of results.json."""
    args, prompts = parse_arguments(Arguments, argv, lambda args: args.task)
    if args.data_dir is None:
        raise DataError("--data_dir is missing; give a folder with images such as train/cat/1.jpg and test/cat/7.jpg")
    quiet_loading()
    output = prepare_output_dir(args.output_dir)
    train, scored = (load_part(args.task, Path(args.data_dir), split) for split in (args.train_split, args.eval_split))
    task = Task(args.task, list(train.class_names or ()), train, scored)
    accelerator = make_accelerator(args.seed, args.report_to, output)
    l2 = settle_blocks(args, prompts, None, accelerator)
    model = build(args, prompts, task)
    transform = transform_for(args.backbone, task.name)
    images, tests = CachedImages(train, transform), TransformedImages(scored, transform)
    return train_and_score(args, prompts, accelerator, output, task, model, images, images, tests, l2)
