# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Pre-train a small masked autoencoder, as done for the backbone that comes with the examples.

    accelerate launch examples/backbones/pretrain_mae.py --dataset uoft-cs/cifar10 --output_dir runs/mae

`transformers.ViTMAEForPreTraining` sees a quarter of each image's patches and predicts the normalised
pixels of the rest (He et al., 2022, https://arxiv.org/abs/2111.06377). The script writes to
`output_dir`:

    encoder/               a `ViTModel` in half precision, with its image processor
    log.jsonl, loss.png    the mean loss of every epoch, as numbers and as a curve
    checkpoints/           the newest training state. Run the same command again to resume

The images are decoded once and stay in memory as bytes (CIFAR-10: 150 MB), which is practical only for small images.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, where the packages are

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    get_cosine_schedule_with_warmup,
)

from backbones.pretraining import augment, load_images, plot_loss, train_epochs
from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.finetune.shared_arguments import option
from gated_prompt.training.checkpoints import prepare_output_dir
from gated_prompt.transforms import IMAGENET_MEAN, IMAGENET_STD


@dataclass
class Arguments:
    """The defaults are the recipe of the shipped backbone."""

    dataset: str = option("Hub id, or a folder that `load_dataset` reads", "uoft-cs/cifar10")
    output_dir: str = option("folder for all results", "runs/mae")
    image_size: int = option("side in pixels to which images are resized", 32)
    patch_size: int = option("side of a patch in pixels", 4)
    hidden_size: int = option("width of the encoder", 128)
    num_hidden_layers: int = option("blocks of the encoder", 12)
    num_attention_heads: int = option("heads of the encoder", 4)
    decoder_hidden_size: int = option("width of the two-block decoder", 96)
    mask_ratio: float = option("share of patches to mask", 0.75)
    num_train_epochs: int = option("passes over the training images", 20)
    warmup_epochs: int = option("epochs of linear warm-up, before a cosine", 2)
    per_device_train_batch_size: int = option("images per process and step", 128)
    learning_rate: float = option("peak learning rate of AdamW", 1.5e-3)
    weight_decay: float = option("on matrices, not on biases and norms", 0.05)
    min_crop: float = option("smallest share of the area in a random crop", 0.4)
    seed: int = option("random seed for weights, order, crops and masks", 0)


def sine_positions(hidden_size: int, side: int) -> torch.Tensor:
    """Return fixed 2-D sine-cosine position embeddings of a square grid, shape (1, 1 + side * side, hidden_size).

    Sine and cosine of column and row take a quarter of the channels each. The CLS token has zeros.
    """
    frequency = 10000.0 ** (-torch.arange(hidden_size // 4) / (hidden_size // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (column, row)]
    patches = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat((torch.zeros(1, hidden_size), patches))[None]


def build_model(args: Arguments) -> ViTMAEForPreTraining:
    """Build a masked autoencoder whose encoder has the blocks of `ViTModel`."""
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=args.image_size,
            patch_size=args.patch_size,
            hidden_size=args.hidden_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.num_attention_heads,
            intermediate_size=4 * args.hidden_size,
            decoder_hidden_size=args.decoder_hidden_size,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=3,
            decoder_intermediate_size=4 * args.decoder_hidden_size,
            mask_ratio=args.mask_ratio,
            norm_pix_loss=True,
            initializer_range=0.5 * args.hidden_size**-0.5,  # the default, 0.02, suits width 768
            layer_norm_eps=1e-6,
        )
    )
    # transformers 5 initializes all of these to zero. The decoder could then not distinguish the masked patches, and
    # the loss would not fall after the first epoch.
    side = args.image_size // args.patch_size
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.copy_(sine_positions(args.hidden_size, side))
        model.decoder.decoder_pos_embed.copy_(sine_positions(args.decoder_hidden_size, side))
        for token in (model.vit.embeddings.cls_token, model.decoder.mask_token):
            token.normal_(std=0.02)
    return model


def export_encoder(mae: ViTMAEForPreTraining, folder: Path) -> None:
    """Write the encoder as a half-precision `ViTModel`. Its keys are the same, so loading is strict."""
    shared = {k: v for k, v in mae.config.to_dict().items() if k in ViTConfig().to_dict() and k != "model_type"}
    encoder = ViTModel(ViTConfig(**shared), add_pooling_layer=False)
    encoder.load_state_dict(mae.vit.state_dict(), strict=True)
    encoder.half().save_pretrained(folder)
    side = {"height": mae.config.image_size, "width": mae.config.image_size}
    ViTImageProcessor(size=side, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD).save_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    """Run with these arguments. None: the command line's."""
    (args,) = CommandLine([Arguments], __doc__).parse(argv)
    accelerator = Accelerator()
    set_seed(args.seed, device_specific=True)  # every process draws its own crops and masks
    output = prepare_output_dir(args.output_dir)

    images = load_images(args.dataset, args.image_size)
    loader = DataLoader(TensorDataset(images), args.per_device_train_batch_size, shuffle=True, drop_last=True)
    model = build_model(args)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.95),
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, args.warmup_epochs * len(loader), args.num_train_epochs * len(loader)
    )

    def loss_of(batch: Sequence[torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = model(pixel_values=augment(batch[0], args.min_crop)).loss
        return loss

    log = train_epochs(accelerator, model, loader, optimizer, schedule, loss_of, output, args.num_train_epochs)
    if accelerator.is_main_process:
        export_encoder(accelerator.unwrap_model(model), output / "encoder")
        plot_loss(log, output / "loss.png")
        print(f"encoder: {output / 'encoder'}")


if __name__ == "__main__":
    with mistakes_in_one_line():
        main()
