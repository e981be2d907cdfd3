# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapt a frozen Vision Transformer to fine-grained images: CUB, NABirds, Flowers, Dogs or Cars.

    accelerate launch examples/train_fgvc.py --task cub --data_dir data/CUB_200_2011 \\
        --backbone backbones/mae-vit-b --preset paper

It trains on the training part and scores the test part once. Settings are chosen with `--eval_split val`. Training
images are resized to a short side of 256, cropped at random to 224 and flipped half of the time. To score, the crop is
the centre one (8/7 and 1 times the size of a backbone of another size). Arguments, files that are left behind and
recipe are those of train_vtab.py. With `--data_dir` and VPT's JSON lists in it the splits are those of published
numbers. Else docs/data.md says how they differ.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gated_prompt.command_line import mistakes_in_one_line
from gated_prompt.data.fgvc import FGVC
from gated_prompt.finetune.shared_arguments import option
from gated_prompt.sharing.backbone import quiet_loading
from gated_prompt.training.checkpoints import prepare_output_dir
from gated_prompt.training.loop import make_accelerator
from gated_prompt.transforms import TransformedImages
from paper.arguments import RunArguments, parse_arguments
from paper.classification import build, train_and_score
from paper.probe import settle_blocks
from paper.records import failure_is_noted, raise_if_diverged
from paper.tasks import fgvc_transform_for, load_fgvc_task


@dataclass
class Arguments(RunArguments):
    """What to train on what. `--data_dir` is the folder of the data set."""

    task: str = option(f"one of: {', '.join(FGVC)}", "cub")
    eval_split: str = option("test, or val to choose settings", "test")
    output_dir: str = option("where everything is written", "runs/fgvc")
    per_device_train_batch_size: int = option("images per process and step", 64)
    linear_probe: bool = option("score a linear probe on the same images as well", False)


class AugmentedImages(Dataset[tuple[torch.Tensor, int]]):
    """Images whose crops and flips depend on seed, epoch and position alone.

    So they are the same after resuming and with any number of processes that decode.
    """

    def __init__(self, images: TransformedImages, seed: int) -> None:
        self.images = images
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(drawn))  # torch.manual_seed would reach the GPU's dropout as well
            return self.images[index]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None: those of the command line) and return the content of results.json."""
    args, prompts = parse_arguments(Arguments, argv, lambda args: args.task)
    quiet_loading()
    output = prepare_output_dir(args.output_dir)
    task = load_fgvc_task(args.task, args.data_dir, args.eval_split)
    accelerator = make_accelerator(args.seed, args.report_to, output)
    centre = fgvc_transform_for(args.backbone, train=False)

    def chosen_on() -> tuple[TransformedImages, TransformedImages]:
        known = task if args.eval_split == "val" else load_fgvc_task(args.task, args.data_dir, "val")
        return TransformedImages(known.train, centre), TransformedImages(known.eval, centre)

    l2 = settle_blocks(args, prompts, chosen_on, accelerator)
    model = build(args, prompts, task)
    validation = chosen_on()[1] if args.curve and args.eval_split == "test" else None
    train = AugmentedImages(TransformedImages(task.train, fgvc_transform_for(args.backbone, train=True)), args.seed)
    probed, scored = TransformedImages(task.train, centre), TransformedImages(task.eval, centre)
    return train_and_score(args, prompts, accelerator, output, task, model, train, probed, scored, l2, validation)


if __name__ == "__main__":
    with mistakes_in_one_line(), failure_is_noted():
        raise_if_diverged(main())
