# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Features of all images after every block of a backbone, in one pass, kept on disk.

The features of a block are its CLS token, if it has one, and the mean of its patch tokens, both after the final
norm: what a model that ends after this block would give to its head.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..architecture import find_vision_transformer
from ..architecture.block_tokens import BlockTokens
from ..errors import GatedPromptError
from ..heads import Reads, read_tokens


def block_features(
    backbone: nn.Module, data: Dataset[Any], accelerator: Accelerator, batch_size: int = 64, workers: int = 0
) -> list[Tensor]:
    """Features (N, F) of each block on the CPU, for all pixels of `data` (pairs of pixels and labels).

    The processes of a run share the work, and each gets all features.

    Raises:
        GatedPromptError: the backbone refuses the images.
    """
    loader = accelerator.prepare(DataLoader(data, batch_size, num_workers=workers))
    rows: list[tuple[Tensor, ...]] = []
    for features in _passes(backbone.eval().to(accelerator.device), loader, accelerator.is_main_process):
        gathered = accelerator.gather_for_metrics(features)  # (B, L, F)
        rows.append(tuple(part.cpu() for part in gathered.unbind(1)))
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]


@torch.no_grad()
def _passes(backbone: nn.Module, loader: DataLoader[Any], show: bool) -> Iterator[Tensor]:
    """Features (B, L, F) of each batch."""
    vit = find_vision_transformer(backbone)
    prefix = vit.num_prefix_tokens
    reader = BlockTokens(backbone, vit, range(len(vit.blocks)))
    try:
        for pixels, _ in tqdm(loader, desc="features of every block", disable=not show, leave=False):
            tokens = _run(backbone, reader, pixels)
            yield torch.stack([read_tokens(one, prefix, reads_of(prefix)).float() for one in tokens], 1)
    finally:
        reader.remove()


def _run(backbone: nn.Module, reader: BlockTokens, pixels: Tensor) -> list[Tensor]:
    try:
        return reader.read(backbone, pixels)[1]
    except (ValueError, RuntimeError) as error:
        raise GatedPromptError(
            f"{type(backbone).__name__} refuses images of {pixels.shape[-1]} pixels ({error}). Give another "
            "--image_size."
        ) from error


def reads_of(prefix: int) -> Reads:
    """Return what probes and heads read of a backbone with `prefix` tokens before the patches."""
    return "both" if prefix else "mean"


NOT_SETTINGS = ("_name_or_path", "transformers_version")
BLOCK = "block_{:03d}"


class BlockFeatures:
    """Features (N, F) of each block, read from their file on demand."""

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
