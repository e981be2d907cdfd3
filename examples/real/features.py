# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the frozen backbone makes of the images: the head's input at every block, computed once and kept.

The head of `Dinov2ForImageClassification` reads the CLS token beside the mean of the patch tokens, after the final
norm. "Block k" is what it would read if the backbone ended after k blocks.
"""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import Dinov2Model

from .images import Task

BATCH = 100


def head_input(tokens: torch.Tensor) -> torch.Tensor:
    """(B, 2 D) from normed tokens (B, 1 + N, D)."""
    return torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1)


@torch.inference_mode()
def block_features(task: Task, backbone: Path, kept_in: Path) -> dict[str, torch.Tensor]:
    """By part (N, L, 2 D), in half precision; read from `kept_in` where they lie already."""
    file = kept_in / f"{task.name}.safetensors"
    if file.is_file():
        return load_file(file)
    model = Dinov2Model.from_pretrained(backbone, dtype=torch.float32).eval()
    features = {}
    for name, part in task.parts.items():
        batches = torch.arange(len(part.labels)).split(BATCH)
        seen = [_all_blocks(model, part.batch(index)) for index in tqdm(batches, desc=f"{task.name} {name}")]
        features[name] = torch.cat(seen)
    kept_in.mkdir(parents=True, exist_ok=True)
    save_file(features, file.with_suffix(".partial"))
    os.replace(file.with_suffix(".partial"), file)
    return features


def _all_blocks(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    states = model(pixels, output_hidden_states=True).hidden_states[1:]
    return torch.stack([head_input(model.layernorm(state)) for state in states], dim=1).half()
