# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The features of every block (`recipe.block_features`), kept on disk."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from .block_features import block_features

NOT_SETTINGS = ("_name_or_path", "transformers_version")
BLOCK = "block_{:03d}"


class BlockFeatures:
    """Features (N, F) by block, read from their file on demand."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with safe_open(file, "pt") as tensors:
            self.num_blocks = len(list(tensors.keys()))

    def __getitem__(self, block: int) -> Tensor:
        with safe_open(self.file, "pt") as tensors:
            return tensors.get_tensor(BLOCK.format(block))


def backbone_key(model: nn.Module) -> str:
    """A fingerprint of the configuration and every weight of a backbone."""
    sha = hashlib.sha256(type(model).__name__.encode())
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    sha.update(repr(sorted((k, repr(v)) for k, v in settings.items() if k not in NOT_SETTINGS)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def kept_features(
    backbone: nn.Module,
    data: Dataset[Any],
    key: str,
    folder: Path,
    accelerator: Accelerator,
    batch_size: int = 64,
    workers: int = 0,
) -> BlockFeatures:
    """The features of all pixels of `data` (pairs of pixels and labels), from the file of this key if there is one.

    `key` has to name everything that they depend on: weights, preparation of the images, and the images. The
    processes of a run share the work.

    Raises:
        GatedPromptError: the backbone refuses the images.
    """
    file = folder / f"{key}.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        features = block_features(backbone, data, accelerator, batch_size, workers)
        if accelerator.is_main_process:
            partial = file.with_suffix(".partial")
            save_file({BLOCK.format(b): one for b, one in enumerate(features)}, partial)
            os.replace(partial, file)
    accelerator.wait_for_everyone()
    return BlockFeatures(file)
