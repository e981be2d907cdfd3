# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Linear probe of a frozen backbone: a logistic regression on its mean patch token.

    python examples/probe.py --dataset uoft-cs/cifar10            # the shipped backbone, and random weights

prints the accuracy on the data set's test part, and that of the same architecture with random weights.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from methods import SHIPPED_BACKBONE
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModel, HfArgumentParser, set_seed

from gated_prompt.architecture import find_vision_transformer


def patch_features(backbone: torch.nn.Module, pixels: torch.Tensor, batch_size: int = 256) -> np.ndarray:
    """Mean of the patch tokens after the final norm, shape (N, D), for pixels of shape (N, 3, H, W)."""
    prefix = find_vision_transformer(backbone).num_prefix_tokens
    device = next(backbone.parameters()).device
    parts = []
    with torch.inference_mode():
        for batch in tqdm(pixels.split(batch_size), desc="features", leave=False):
            parts.append(backbone(batch.to(device)).last_hidden_state[:, prefix:].mean(1).float().cpu())
    return torch.cat(parts).numpy()


def probe(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    """Test accuracy of a logistic regression on standardised features."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    return float(LogisticRegression(max_iter=1000).fit((x - mean) / std, y).score((x_test - mean) / std, y_test))


@dataclass
class Arguments:
    """What to probe on what."""

    dataset: str = field(default="uoft-cs/cifar10", metadata={"help": "Hub id, or a folder that load_dataset reads"})
    backbone: str = field(default=str(SHIPPED_BACKBONE), metadata={"help": "Hub id or folder of a ViT"})
    seed: int = field(default=0, metadata={"help": "of the random weights"})


def _read(split: Dataset, processor: Any) -> tuple[torch.Tensor, np.ndarray]:
    image, label = (next(c for c in names if c in split.column_names) for names in (("image", "img"), ("label",)))
    pixels = [processor(i.convert("RGB"), return_tensors="pt")["pixel_values"][0] for i in tqdm(split[image])]
    return torch.stack(pixels), np.array(split[label])


def main() -> None:
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    data, processor = load_dataset(args.dataset), AutoImageProcessor.from_pretrained(args.backbone)
    (train, y), (test, y_test) = _read(data["train"], processor), _read(data["test"], processor)
    set_seed(args.seed)
    models = {
        "trained": AutoModel.from_pretrained(args.backbone, add_pooling_layer=False, dtype="float32"),
        "random": AutoModel.from_config(AutoConfig.from_pretrained(args.backbone), add_pooling_layer=False).float(),
    }
    for name, model in models.items():
        x, x_test = patch_features(model.eval(), train), patch_features(model, test)
        print(f"{name} weights: {probe(x, y, x_test, y_test):.4f} on {len(test)} test images")


if __name__ == "__main__":
    main()
