# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Train a small ViT on labels: the supervised backbone that the miniature compares with the MAE one.

    accelerate launch examples/backbones/pretrain.py supervised --dataset uoft-cs/cifar10 --output_dir runs/supervised

Trains all weights, starting from those of `--start_from`, with cross-entropy on the mean of the patch tokens. The
script writes to `output_dir`:

    encoder/               a `ViTModel` in half precision, with its image processor
    log.jsonl, loss.png    the mean loss of every epoch, as numbers and as a curve
    checkpoints/           the newest training state. Run the same command again to resume
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

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

from gated_prompt.command_line import CommandLine
from gated_prompt.finetune.methods import build_model
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.sharing.backbone import image_settings, quiet_loading
from gated_prompt.shipped import SHIPPED_BACKBONE
from gated_prompt.training.checkpoints import prepare_output_dir
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD

from .pretraining import augment, load_images, plot_loss, train_epochs


@dataclass
class Arguments:
    """The defaults are the recipe of the shipped backbone."""

    dataset: str = field(default="uoft-cs/cifar10", metadata={"help": "Hub id, or a folder that `load_dataset` reads"})
    start_from: str = field(
        default=str(SHIPPED_BACKBONE),
        metadata={"help": "folder of the ViT to start from; default: the small ViT that the package ships"},
    )
    output_dir: str = field(default="runs/supervised", metadata={"help": "folder for all results"})
    num_train_epochs: int = field(default=3, metadata={"help": "passes over the training images"})
    warmup_steps: int = field(default=30, metadata={"help": "steps of linear warm-up; a cosine follows"})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "images per process and step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    weight_decay: float = field(default=0.05, metadata={"help": "on matrices, not on biases and norms"})
    min_crop: float = field(default=0.6, metadata={"help": "smallest share of the area in a random crop"})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on at most this many images, for quick trials; default: all"}
    )
    seed: int = field(default=0, metadata={"help": "random seed for head, order and crops"})


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
