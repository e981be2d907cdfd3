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
    seen: list[Tensor] = []
    norms: list[nn.Module] = []  # what reads the tokens of the last block: the final norm, or nothing

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    def look(module: nn.Module, args: Any) -> None:
        if not norms and len(seen) == len(vit.blocks) and args and args[0] is seen[-1]:
            norms.append(module)

    inside = {id(module) for block in vit.blocks for module in block.modules()}
    handles = [block.register_forward_hook(keep) for block in vit.blocks]
    for module in backbone.modules():
        if id(module) not in inside and not any(True for _ in module.children()):
            handles.append(module.register_forward_pre_hook(look))
    try:
        for pixels, _ in tqdm(loader, desc="features of every block", disable=not show, leave=False):
            seen.clear()
            _run(backbone, pixels)
            tokens = [norms[0](block) if norms else block for block in list(seen)]
            yield torch.stack([read_tokens(one, prefix, reads_of(prefix)).float() for one in tokens], 1)
    finally:
        for handle in handles:
            handle.remove()


def _run(backbone: nn.Module, pixels: Tensor) -> None:
    try:
        backbone(pixels)
    except (ValueError, RuntimeError) as error:
        raise GatedPromptError(
            f"{type(backbone).__name__} refuses images of {pixels.shape[-1]} pixels ({error}); give another "
            "--image_size"
        ) from error


def reads_of(prefix: int) -> Reads:
    """What probes and heads read of a backbone with so many tokens before the patches."""
    return "both" if prefix else "mean"
