# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapt a frozen Vision Transformer to a small image classification task, by the recipe of the paper.

    accelerate launch examples/train_vtab.py                          # the shipped backbone on scanned digits
    accelerate launch examples/train_vtab.py --backbone facebook/dinov2-base --num_virtual_tokens 10
    accelerate launch examples/train_vtab.py --task dtd --backbone backbones/mae-vit-b --preset paper
    accelerate launch examples/train_vtab.py --task dtd --backbone facebook/dinov2-small --preset recommended

The same command runs on one CPU, one GPU, several GPUs (`accelerate config`) and in mixed precision
(`accelerate launch --mixed_precision bf16`). It trains on the 800 + 200 images, scores the test part once, and
leaves in `--output_dir`: `adapter/` (weights, config, model card), `results.json` and `gates.png`.

VTAB's protocol chooses settings with `--train_split train800 --eval_split val200`. `--read_block best` chooses the
block on these 200 images, also where the final run trains on all 1000. Images are resized straight to the
model's size, without augmentation. In paper/: arguments.py has the recipe and its arguments, presets.py the named
settings. reproduce_tables.py runs whole tables.
"""

from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from gated_prompt.command_line import mistakes_in_one_line
from gated_prompt.finetune.shared_arguments import option
from gated_prompt.sharing.backbone import quiet_loading
from gated_prompt.training.checkpoints import prepare_output_dir
from gated_prompt.training.loop import make_accelerator
from gated_prompt.training.token_cache import cache_prefix
from gated_prompt.transforms import CachedImages, TransformedImages
from paper.arguments import RunArguments, parse_arguments
from paper.classification import build, train_and_score
from paper.probe import settle_blocks
from paper.records import failure_is_noted, raise_if_diverged
from paper.tasks import KNOWN, load_task, transform_for


@dataclass
class Arguments(RunArguments):
    """What to train on what. `--data_dir` is a folder in the vtab-1k layout."""

    task: str = option(f"one of: {', '.join(KNOWN)}", "digits")
    train_split: str = option("train800val200, or train800 to choose", "train800val200")
    eval_split: str = option("test, or val200 to choose", "test")
    cache_prefix: bool = option("keep what reaches block --insert_at in a file, once for each training image", False)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (None: those of the command line) and return the content of results.json."""
    args, prompts = parse_arguments(Arguments, argv, lambda args: args.task)
    quiet_loading()
    output = prepare_output_dir(args.output_dir)
    task = load_task(args.task, args.data_dir, args.train_split, args.eval_split)
    accelerator = make_accelerator(args.seed, args.report_to, output)
    transform = transform_for(args.backbone, args.task)

    def chosen_on() -> tuple[TransformedImages, TransformedImages]:
        known = load_task(args.task, args.data_dir, "train800", "val200")
        return TransformedImages(known.train, transform), TransformedImages(known.eval, transform)

    l2 = settle_blocks(args, prompts, chosen_on, accelerator)
    model = build(args, prompts, task)
    images, scored = CachedImages(task.train, transform), TransformedImages(task.eval, transform)
    validation = chosen_on()[1] if args.curve and args.eval_split == "test" else None
    train: Dataset[Any] = images
    if args.cache_prefix and prompts.insert_at:
        train = cache_prefix(model.to(accelerator.device), images, output / "prefix.safetensors", accelerator)
    return train_and_score(args, prompts, accelerator, output, task, model, train, images, scored, l2, validation)


if __name__ == "__main__":
    with mistakes_in_one_line(), failure_is_noted():
        raise_if_diverged(main())
