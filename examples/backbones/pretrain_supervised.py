# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Train a small ViT on labels: the supervised backbone that the miniature compares with the MAE one.

    accelerate launch examples/backbones/pretrain_supervised.py --dataset uoft-cs/cifar10 --output_dir runs/supervised

Trains all weights, starting from those of `--start_from`, with cross-entropy on the mean of the patch tokens. The
script writes to `output_dir`:

    encoder/               a `ViTModel` in half precision, with its image processor
    log.jsonl, loss.png    the mean loss of every epoch, as numbers and as a curve
    checkpoints/           the newest training state. Run the same command again to resume
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, where the packages are

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    ViTImageProcessor,
    get_cosine_schedule_with_warmup,
)

from backbones.pretraining import augment, load_images, plot_loss, train_epochs
from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.finetune.methods import build_model
from gated_prompt.finetune.shared_arguments import PromptArguments, option
from gated_prompt.sharing.backbone import image_settings, quiet_loading
from gated_prompt.shipped import SHIPPED_BACKBONE
from gated_prompt.training.checkpoints import prepare_output_dir
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD


@dataclass
class Arguments:
    """The defaults are the recipe of the shipped backbone."""

    dataset: str = option("Hub id, or a folder that `load_dataset` reads", "uoft-cs/cifar10")
    start_from: str = option(
        "folder of the ViT to start from (default: the small ViT that the package ships)", str(SHIPPED_BACKBONE)
    )
    output_dir: str = option("folder for all results", "runs/supervised")
    num_train_epochs: int = option("passes over the training images", 3)
    warmup_steps: int = option("steps of linear warm-up, before a cosine", 30)
    per_device_train_batch_size: int = option("images per process and step", 64)
    learning_rate: float = option("peak learning rate of AdamW", 1e-3)
    weight_decay: float = option("on matrices, not on biases and norms", 0.05)
    min_crop: float = option("smallest share of the area in a random crop", 0.6)
    max_train_samples: int | None = option("train on at most this many images, for quick trials (default: all)", None)
    seed: int = option("random seed for head, order and crops", 0)


def load_labels(dataset: str) -> tuple[torch.Tensor, list[str]]:
    """Return the classes (N,) of the training images, in the order of `load_images`, and the class names."""
    split = load_dataset(dataset, split="train")
    return torch.tensor(split["label"]), list(split.features["label"].names)


def main(argv: list[str] | None = None) -> None:
    """Run with these arguments. None: the command line's."""
    (args,) = CommandLine([Arguments], __doc__).parse(argv)
    quiet_loading()
    accelerator = Accelerator()
    set_seed(args.seed, device_specific=True)  # every process draws its own crops
    output = prepare_output_dir(args.output_dir)

    labels, names = load_labels(args.dataset)
    model = build_model(args.start_from, "full", PromptArguments(pooling="patches"), names)
    side = image_settings(args.start_from).side
    images = load_images(args.dataset, side)
    count = min(len(images), args.max_train_samples or len(images))
    data = TensorDataset(images[:count], labels[:count])
    loader = DataLoader(data, args.per_device_train_batch_size, shuffle=True, drop_last=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.learning_rate,
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.warmup_steps, args.num_train_epochs * len(loader))

    def loss_of(batch: Sequence[torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = F.cross_entropy(model(augment(batch[0], args.min_crop)).logits, batch[1])
        return loss

    log = train_epochs(
        accelerator, model, loader, optimizer, schedule, loss_of, output, args.num_train_epochs, max_norm=1.0
    )
    if accelerator.is_main_process:
        encoder = accelerator.unwrap_model(model).base_model
        encoder.half().save_pretrained(output / "encoder")
        size = {"height": side, "width": side}
        ViTImageProcessor(size=size, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD).save_pretrained(
            output / "encoder"
        )
        plot_loss(log, output / "loss.png", "supervised training", "cross-entropy")
        print(f"encoder: {output / 'encoder'}")


if __name__ == "__main__":
    with mistakes_in_one_line():
        main()
