# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`gated-prompt convert backbone CHECKPOINT OUT` and `... adapter CHECKPOINT OUT --pooling ...`.

The arguments are read before torch is imported, so what they may say stands here too. A test compares it.
"""

import argparse
import sys
from collections.abc import Sequence

from ..command_line import CommandLine
from ..errors import GatedPromptError

KINDS = ("mae", "moco", "dino", "timm", "official")
POOLINGS = ("prompts", "patches", "prompts_and_patches")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKBONE = """\
Convert a pre-trained Vision Transformer to a folder that transformers loads: a ViTModel, or a
ViTForImageClassification if the checkpoint has a linear head. Prints what was left out and why.

kinds (detected from the names in the file):
  mae       MAE: mae_pretrain_vit_base.pth, mae_pretrain_vit_large.pth, ...
  moco      MoCo v3: vit-b-300ep.pth.tar (pre-training), linear-vit-b-300ep.pth.tar (linear evaluation)
  dino      DINO: dino_vitbase16_pretrain.pth, dino_vitbase16_pretrain_full_checkpoint.pth
  timm      plain names of timm's VisionTransformer, .pth, .bin or .safetensors
  official  a run of the paper's official code: its frozen backbone
"""
ADAPTER = """\
Convert a run of the paper's official code (its last_model.pth) to a gated-prompt adapter. The file does not record
which class ran, so give the pooling:
  none                 MoCo v3 with VIT_POOL_TYPE original
  prompts_and_patches  MAE with VIT_POOL_TYPE original, or imgprompt_pool
  patches              VIT_POOL_TYPE img_pool
  prompts              VIT_POOL_TYPE prompt_pool
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one conversion and print its report. On an error, print it and return 1."""
    try:
        args = parser().parse_args(argv)
        from ..convert import convert_adapter, convert_backbone

        if args.command == "backbone":
            report = convert_backbone(
                args.checkpoint,
                args.out,
                kind=args.kind,
                num_attention_heads=args.num_attention_heads,
                image_mean=args.image_mean,
                image_std=args.image_std,
                overwrite=args.overwrite,
            )
        else:
            pooling = None if args.pooling == "none" else args.pooling
            report = convert_adapter(
                args.checkpoint, args.out, pooling=pooling, base_model=args.base_model, overwrite=args.overwrite
            )
    except (GatedPromptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


def parser() -> CommandLine:
    """The arguments of both conversions."""
    whole = CommandLine(
        description="Convert self-supervised checkpoints, and runs of the paper's official code.",
        prog="gated-prompt convert",
    )
    commands = whole.add_subparsers(dest="command", required=True)
    backbone = _command(commands, "backbone", "convert a pre-trained encoder to a transformers model", BACKBONE)
    backbone.add_argument("--kind", choices=KINDS, help="which code wrote the checkpoint, if its names are ambiguous")
    backbone.add_argument(
        "--num_attention_heads",
        type=int,
        metavar="N",
        help="attention heads, which the shapes do not reveal (default: 12 for MoCo v3's ViT-S, 16 for widths 1152 to "
        "1664, else width / 64)",
    )
    for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        backbone.add_argument(
            f"--image_{name}",
            type=float,
            nargs=3,
            default=list(default),
            metavar=("R", "G", "B"),
            help=f"{name} per channel of pixels in [0, 1] (default: ImageNet's, %(default)s)",
        )
    adapter = _command(commands, "adapter", "convert a run of the official code to an adapter", ADAPTER)
    adapter.add_argument("--pooling", required=True, choices=("none", *POOLINGS), help="see above")
    adapter.add_argument("--base_model", metavar="NAME", help="folder or Hub id of the base, recorded in the adapter")
    return whole


def _command(commands: "argparse._SubParsersAction[CommandLine]", name: str, summary: str, text: str) -> CommandLine:
    one = commands.add_parser(name, help=summary, description=text)
    one.add_argument("checkpoint", help="the file to convert")
    one.add_argument("out", help="the output folder, written atomically")
    one.add_argument("--overwrite", action="store_true", help="replace an earlier conversion in that folder")
    return one
