# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Features of all images after every block of a backbone, in one pass.

The features of a block are its CLS token, where there is one, and the mean of its patch tokens, both after the final
norm: what a model that ends after this block would give to its head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
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
            f"{type(backbone).__name__} refuses images of {pixels.shape[-1]} pixels ({error}); give another "
            "--image_size"
        ) from error


def reads_of(prefix: int) -> Reads:
    """What probes and heads read of a backbone with so many tokens before the patches."""
    return "both" if prefix else "mean"
