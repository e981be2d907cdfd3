# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Linear probe of a frozen backbone: a logistic regression on its mean patch token.

    python examples/probe.py --dataset uoft-cs/cifar10            # the shipped backbone

Prints the accuracy on the data set's test split, and that of the same architecture with random weights.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import load_dataset
from torch.utils.data import TensorDataset
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, set_seed

from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.images import to_rgb
from gated_prompt.sharing.backbone import quiet_loading
from gated_prompt.shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from gated_prompt.transforms import ResizeSquare
from paper.probe import patch_features, probe
from paper.tasks import transform_for


@dataclass
class Arguments:
    """The backbone to probe and the data set."""

    dataset: str = field(default="uoft-cs/cifar10", metadata={"help": "Hub id, or a folder that load_dataset reads"})
    backbone: str = field(default=str(SHIPPED_BACKBONE), metadata={"help": BACKBONE_HELP})
    seed: int = field(default=0, metadata={"help": "random seed for the untrained weights"})


def _read(split: Any, transform: ResizeSquare) -> TensorDataset:
    column = "image" if "image" in split.column_names else "img"
    pixels = [transform(to_rgb(image)) for image in tqdm(split[column], desc="decode", leave=False)]
    return TensorDataset(torch.stack(pixels), torch.tensor(split["label"]))


def main(argv: list[str] | None = None) -> None:
    """Run with these arguments. None: the command line's."""
    (args,) = CommandLine([Arguments], __doc__).parse(argv)
    quiet_loading()
    transform = transform_for(args.backbone, args.dataset)
    data = load_dataset(args.dataset)
    train, test = _read(data["train"], transform), _read(data["test"], transform)
    set_seed(args.seed)
    models = {
        "trained": AutoModel.from_pretrained(args.backbone, add_pooling_layer=False, dtype="float32"),
        "random": AutoModel.from_config(AutoConfig.from_pretrained(args.backbone), add_pooling_layer=False).float(),
    }
    for name, model in models.items():
        accuracy = probe(patch_features(model.eval(), train), patch_features(model, test))
        print(f"{name} weights: {accuracy:.4f} on {len(test)} test images")


if __name__ == "__main__":
    with mistakes_in_one_line():
        main()
