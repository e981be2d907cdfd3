# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Start prompts from images of the task rather than from random numbers: `initialize_prompts`."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol, Self

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..architecture import VisionTransformer, find_vision_transformer
from ..architecture.adapter import Adapter
from ..errors import GatedPromptError, UnsupportedOperationError
from ..files.layout import BANK
from ..inspect.readouts import find_adapter
from ..training.processes import combine, rank_and_world
from .hooked_base import Batch, hooked_base
from .matched import match_tokens
from .tokens import ClusteredTokens, SampledTokens, max_of_windows, mean_of_windows, mini_batch_kmeans

METHODS = ("sample", "mean", "max", "kmeans", "match")


class Start(Protocol):
    """What the prompts of one block are made from."""

    def add(self, tokens: torch.Tensor, visible: torch.Tensor | None) -> None: ...
    def merge(self, others: Sequence[Self]) -> None: ...
    def prompts(self) -> torch.Tensor: ...


def initialize_prompts(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    method: str = "sample",
    seed: int = 0,
    before_positions: bool = False,
    neighbours: int = 8,
    orthogonal: float = 0.0,
    overwrite: bool = False,
    adapter_name: str | None = None,
) -> None:
    """Start the prompts of an adapter from images of its task. Call it after `get_peft_model`, before training.

    The images pass through the frozen base, without prompts and in eval mode. The prompts are made from the patch
    tokens that enter the block they will be inserted at. With `deep`, the prompts of each block are made from the
    tokens that enter this block. Nothing but the prompts is changed. `docs/settings.md` compares the methods.

    With torch.distributed, give each process its own share of the images. What they see is put together, and all get
    the prompts of process 0. Call it before the model is wrapped or sharded.

    Args:
        model: what `get_peft_model` returned, or anything that holds it.
        batches: pixel values (B, 3, H, W), dicts with `pixel_values`, or pairs (pixels, labels), for example a
            DataLoader of training images. One pass is made over all of them, in memory that does not grow.
        method: "sample" takes random tokens (SPT, arXiv 2402.02382). "mean" and "max" pool random windows of the row
            of tokens (SPT). "kmeans" takes centres of token clusters (needs scikit-learn). "match" takes means of the
            tokens whose keys are nearest to those of random prompts (VIPAMIN, arXiv 2510.16446).
        seed: of all random choices, 0 to 2^32 - 1. The same images in the same order give the same prompts.
        before_positions: for block 0, take the output of the patch projection, as SPT does, rather than the input of
            the block, which has position embeddings added. Not with "match".
        neighbours: for "match", the number of tokens averaged into one prompt.
        orthogonal: for "match", the weight in [0, 1] of a part whose values lie outside the span of the block's mean
            attention outputs. The matched part has the rest.
        overwrite: also replace prompts that are no longer what they started from.
        adapter_name: None means the active adapter.

    Raises:
        GatedPromptError: there is no adapter, an option is wrong, a batch has no pixels, there are too few images,
            tokens are not finite, or scikit-learn is missing. The adapter and the modes of the model are then as
            before.
        UnsupportedOperationError: the adapter is trained or loaded, and `overwrite` is off.
        ArchitectureError: "match" cannot find the projections of the attention.

    Example:
        ```python
        model = get_peft_model(vit, GatedPromptConfig(num_virtual_tokens=10))
        gated_prompt.initialize_prompts(model, train_loader, method="sample")
        ```
    """
    bank, adapter = find_adapter(model, adapter_name)
    _check_options(adapter, method, seed, before_positions, neighbours, orthogonal)
    if bank.is_trained(adapter) and not overwrite:
        raise UnsupportedOperationError(
            f"the prompts of adapter {adapter.name!r} differ from their initial values: they were trained, loaded or "
            "set. Pass overwrite=True to replace them."
        )
    root = next(module for module in model.modules() if getattr(module, BANK, None) is bank)
    vit = find_vision_transformer(root, adapter.config.target_modules)
    blocks = adapter.blocks if adapter.config.deep else range(adapter.first, adapter.first + 1)
    count = adapter.config.num_virtual_tokens

    def look_at_images() -> dict[int, Start]:
        # Not tqdm.auto: it starts a loader, which then draws from the caller's random numbers, before this one does.
        shown = tqdm(batches, desc="initialize prompts", leave=False, disable=rank_and_world()[0] != 0)
        with hooked_base(root, vit, adapter.prompts.start, seed) as look:
            if method == "match":
                randoms = _random_prompts(vit, seed, count, blocks)
                return dict(match_tokens(look, vit, randoms, shown, neighbours, orthogonal))
            starts = _token_starts(method, seed, count, blocks)
            for block, start in starts.items():
                look.on_patches(block, start.add, before_positions and block == 0)
            for batch in shown:
                look.run(batch)
            return starts

    def finish(parts: list[dict[int, Start]]) -> torch.Tensor:
        first, *others = parts
        for block, start in first.items():
            start.merge([other[block] for other in others])
        return torch.stack([first[block].prompts() for block in blocks])

    bank.start_from(adapter, combine(look_at_images, finish))


def _check_options(
    adapter: Adapter, method: str, seed: int, before_positions: bool, neighbours: int, orthogonal: float
) -> None:
    faults = []
    if method not in METHODS:
        faults.append(f"method is {method!r}. Choose from: {', '.join(map(repr, METHODS))}.")
    if not 0 <= seed < 2**32:
        faults.append(f"seed is {seed}. Expected an integer from 0 to 2^32 - 1.")
    if before_positions and (adapter.config.insert_at > 0 or method == "match"):
        faults.append("before_positions is about prompts at block 0, and not for 'match', which needs its keys")
    if neighbours < 1:
        faults.append(f"neighbours is {neighbours}. Expected at least 1.")
    if not (math.isfinite(orthogonal) and 0 <= orthogonal <= 1):
        faults.append(f"orthogonal is {orthogonal}. Expected a weight in [0, 1].")
    if method != "match" and (neighbours, orthogonal) != (8, 0.0):
        faults.append(f"neighbours and orthogonal are for method='match', not {method!r}")
    if faults:
        raise GatedPromptError(f"initialize_prompts: {' '.join(faults)}")
    if method == "kmeans":
        mini_batch_kmeans()  # before any work


def _token_starts(method: str, seed: int, count: int, blocks: Iterable[int]) -> dict[int, Start]:
    rng = np.random.default_rng((seed, rank_and_world()[0]))  # processes draw independently
    if method == "kmeans":
        return {block: ClusteredTokens(count, rng, seed) for block in blocks}
    pool = {"sample": None, "mean": partial(mean_of_windows, count=count), "max": partial(max_of_windows, count=count)}
    return {block: SampledTokens(count, rng, pool[method]) for block in blocks}


def _random_prompts(vit: VisionTransformer, seed: int, count: int, blocks: Iterable[int]) -> dict[int, torch.Tensor]:
    """Prompts (P, D) of each block as they start without images, the same on all processes."""
    rng, bound = np.random.default_rng(seed), vit.prompt_bound
    return {block: torch.from_numpy(rng.uniform(-bound, bound, (count, vit.hidden_size))) for block in blocks}
