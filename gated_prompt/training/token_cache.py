# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Compute the blocks below the prompts once per image instead of once per epoch.

With `insert_at=k` the blocks 0..k-1 see no prompts and are frozen, so without augmentation what reaches block k is the
same in every epoch. It is kept in a memory-mapped safetensors file. Training then starts at block k.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ..architecture import find_vision_transformer
from ..errors import GatedPromptError
from ..tuner.bank import find_bank

TOKENS = "tokens"  # (N, tokens, D), what reaches block k
LABELS = "labels"  # (N,) or (N, K)
MOST_BYTES = 2**31  # for one set of images. While the file is written, memory holds it twice


class CachedPrefix(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Tokens (N, D) that reach block k in the place of pixels, and the label, image by image."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with safe_open(file, "pt") as tensors:
            self.labels: torch.Tensor = tensors.get_tensor(LABELS)
        self._tokens: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tokens is None:  # opened in the worker that reads
            self._tokens = safe_open(self.file, "pt").get_slice(TOKENS)
        return self._tokens[index], self.labels[index]


class StartAtBlock:
    """Let a model that is called with such tokens start at block k. `close()` lets it start at the pixels again.

    `first` is k: by default the block that prompts enter. The number of blocks leaves norm and head alone.
    """

    def __init__(self, model: nn.Module, first: int | None = None) -> None:
        self.model = model
        self.vit = find_vision_transformer(_root(model))
        self.first = _first_block(model) if first is None else first
        self._skipped = [self.vit.embeddings, *self.vit.blocks[: self.first]]
        self._forwards: list[Any] = []  # those that the modules carry themselves, as blocks with an adapter do

    def open(self) -> None:
        self._forwards = [vars(module).get("forward") for module in self._skipped]
        for module in self._skipped:
            module.forward = _hand_on

    def close(self) -> None:
        for module, own in zip(self._skipped, self._forwards, strict=False):
            del module.forward
            if own is not None:
                module.forward = own
        self._forwards = []


def _hand_on(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return tokens


@torch.no_grad()
def cache_prefix(
    model: nn.Module, data: Dataset[Any], file: Path, accelerator: Accelerator, batch_size: int = 128
) -> CachedPrefix:
    """Write what reaches block k for every image of `data` (pairs of pixels and label), and check it.

    Only the main process writes. Each process checks with its own model that training can start at block k.

    Raises:
        GatedPromptError: there are no blocks below the prompts, the tokens would take more than `MOST_BYTES`, or the
            model cannot start at block k: the logits of the first images differ from those that it computes from
            pixels.
    """
    start = StartAtBlock(model)
    if start.first == 0:
        raise GatedPromptError(
            "the prompts enter at block 0, so there are no tokens before them to keep. --cache_prefix needs "
            "--insert_at > 0."
        )
    mode = model.training
    model.eval()
    try:
        _write(model, start, data, file, accelerator, batch_size)
    finally:
        model.train(mode)
    return CachedPrefix(file)


def _write(
    model: nn.Module, start: StartAtBlock, data: Dataset[Any], file: Path, accelerator: Accelerator, batch_size: int
) -> None:
    first = next(prefix_tokens(model, start, Subset(data, [0]), 1))[0]
    size = len(data) * first.numel() * first.element_size()  # type: ignore[arg-type]
    if size > MOST_BYTES:
        raise GatedPromptError(
            f"the tokens of {len(data)} images take {size / 2**30:.1f} GiB, "  # type: ignore[arg-type]
            f"and at most {MOST_BYTES / 2**30:g} GiB are kept. Train from pixels instead."
        )
    _check(model, start, data[0][0][None].to(accelerator.device), first.to(accelerator.device))
    if accelerator.is_main_process:
        tokens, labels = zip(*prefix_tokens(model, start, data, batch_size), strict=True)
        partial = file.with_suffix(".partial")
        save_file({TOKENS: torch.cat(tokens), LABELS: torch.cat(labels)}, partial)
        os.replace(partial, file)
    accelerator.wait_for_everyone()


def prefix_tokens(
    model: nn.Module, start: StartAtBlock, data: Dataset[Any], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What reaches block k, batch by batch (B, N, D), and the labels."""
    seen: list[torch.Tensor] = []
    hook = start.vit.blocks[start.first - 1].register_forward_hook(
        lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple) else out).cpu())
    )
    device = next(model.parameters()).device
    try:
        for pixels, labels in tqdm(DataLoader(data, batch_size), desc="cache", leave=False):
            model(pixels.to(device))
            yield seen.pop(), labels
    finally:
        hook.remove()


def _check(model: nn.Module, start: StartAtBlock, pixels: torch.Tensor, tokens: torch.Tensor) -> None:
    wanted = model(pixels).logits
    start.open()
    try:
        found = model(tokens).logits
    except (RuntimeError, ValueError, TypeError, AttributeError):
        found = None
    finally:
        start.close()
    if found is None or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise GatedPromptError(
            f"{type(_root(model)).__name__} cannot start at block {start.first} from kept tokens (it computes "
            "something beside them from the pixels, such as rotations). Train from pixels instead."
        )


def _root(model: nn.Module) -> nn.Module:
    base: Any = getattr(model, "get_base_model", None)
    return base() if base is not None else model


def _first_block(model: nn.Module) -> int:
    bank = find_bank(model)
    adapter = bank.adapters_in_use[0] if bank is not None and bank.adapters_in_use else None
    return adapter.first if adapter is not None else 0
