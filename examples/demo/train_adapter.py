# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Train an adapter for the demo page on generated shapes, or on a folder of images.

    export PYTHONPATH=examples
    accelerate launch examples/demo/train_adapter.py --output_dir runs/shapes
    accelerate launch examples/demo/train_adapter.py --task objects --data_dir FOLDER --output_dir runs/objects

The folder is one that `datasets.load_dataset` reads, with a train and a test part: subfolders of images by class
(`train/cat/1.jpg`), or Parquet files. All else is as in train_vtab.py, whose digits are the page's third adapter.
"""

import math
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from checkpoints import prepare_output_dir
from methods import build_model
from PIL import Image, ImageDraw
from tasks import Task, transform_for
from training import RunArguments, parse_arguments, start, train_and_score

from gated_prompt import GatedPromptError
from gated_prompt.data.images import LabelledImages, Provenance
from gated_prompt.data.preprocess import CachedImages, TransformedImages
from gated_prompt.errors import DataError

SHAPES = {  # distance of each corner from the centre, at equal angles
    "circle": [1.0] * 40,
    "square": [1.0] * 4,
    "triangle": [1.0] * 3,
    "star": [1.0, 0.4] * 5,
    "cross": [1.0, 1.0, 0.35] * 4,
}
SIDE, FINER = 32, 4  # pixels of an image, and how many times larger it is drawn, for smooth edges
SEEDS = {"train": (0, 1000), "test": (1, 500)}  # and the number of images


@dataclass
class Arguments(RunArguments):
    """What to train on: shapes, or any other name together with a `--data_dir`."""

    task: str = field(default="shapes", metadata={"help": "shapes, or your name for what is in --data_dir"})


def draw_shape(name: str, rng: np.random.Generator) -> Image.Image:
    """One shape in a random colour, size, place and turn on a ground of another colour: RGB, 32 x 32 pixels."""
    ground, colour = rng.integers(0, 256, (2, 3))
    while np.abs(ground - colour).mean() < 60:  # else it could not be seen
        ground, colour = rng.integers(0, 256, (2, 3))
    radius, turn = FINER * rng.uniform(7, 13), rng.uniform(0, 2 * math.pi)
    x, y = rng.uniform(radius, FINER * SIDE - radius, 2)
    corners = SHAPES[name]
    angles = [turn + 2 * math.pi * count / len(corners) for count in range(len(corners))]
    points = [
        (x + radius * distance * math.cos(angle), y + radius * distance * math.sin(angle))
        for distance, angle in zip(corners, angles, strict=True)
    ]
    image = Image.new("RGB", (FINER * SIDE, FINER * SIDE), tuple(ground.tolist()))
    ImageDraw.Draw(image).polygon(points, fill=tuple(colour.tolist()))
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


class Pictures(list[Image.Image]):
    """Images in memory."""

    def name(self, index: int) -> str:
        return f"image {index}"


def load_shapes(split: str) -> LabelledImages:
    """Train or test part, the same images every time."""
    seed, count = SEEDS[split]
    rng, names = np.random.default_rng(seed), list(SHAPES)
    labels = [index % len(names) for index in range(count)]
    pictures = Pictures(draw_shape(names[label], rng) for label in labels)
    return _labelled(pictures, labels, names, "shapes", split, "images that examples/demo/train_adapter.py draws")


def load_own(task: str, folder: str, split: str) -> LabelledImages:
    """Train or test part of a folder that `datasets` reads, with columns `image` and `label`.

    Raises:
        DataError: it cannot be read, or lacks the part or a column.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(folder, split=split)
        names = rows.features["label"].names
        pictures = Pictures(image.convert("RGB") for image in rows["image"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"--data_dir {folder!r} gave no {split} part with images and labels ({error}); put the images into "
            f"subfolders by class, as in {split}/cat/1.jpg"
        ) from error
    return _labelled(pictures, list(rows["label"]), names, task, split, "a folder of images")


def _labelled(
    pictures: Pictures, labels: list[int], names: list[str], task: str, split: str, source: str
) -> LabelledImages:
    count = len(pictures)
    origin = Provenance(task, split, source, revision=None, exact=True, note="", count=count, expected_count=None)
    return LabelledImages(pictures, labels, num_classes=len(names), class_names=names, provenance=origin)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None: those of the command line) and return the content of results.json."""
    args, prompts = parse_arguments(Arguments, argv, lambda args: args.task)
    output = prepare_output_dir(args.output_dir)
    if args.data_dir is not None:
        train, scored = (load_own(args.task, args.data_dir, split) for split in SEEDS)
    elif args.task == "shapes":
        train, scored = map(load_shapes, SEEDS)
    else:
        raise DataError(f"--task {args.task} needs a --data_dir; without one there are only shapes")
    task = Task(args.task, list(train.class_names or ()), train, scored)
    accelerator = start(args, output)
    model = build_model(args.backbone, args.method, prompts, task.class_names, kind=args.backbone_kind)
    transform = transform_for(args.backbone)
    images, tests = CachedImages(train, transform), TransformedImages(scored, transform)
    return train_and_score(args, prompts, accelerator, output, task, model, images, images, tests)


if __name__ == "__main__":
    try:
        main()
    except GatedPromptError as error:
        sys.exit(f"error: {error}")
