# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Prompts that a block's own keys place among the tokens of the task, and a part that its attention does not reach.

The idea is that of Park et al., *VIPAMIN: Visual Prompt Initialization via Embedding Selection and Subspace
Expansion* (NeurIPS 2025, https://arxiv.org/abs/2510.16446). Means are taken over the images at each place.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..architecture import VisionTransformer
from ..errors import ArchitectureError, GatedPromptError
from .hooked_base import Batch, HookedBase
from .tokens import refuse_padding

KEY_NAMES, VALUE_NAMES, FUSED = ("k_proj", "key"), ("v_proj", "value"), "qkv"


class Mean:
    """Mean over images of (B, N, D), kept as a sum in float64 and a number of images."""

    def __init__(self) -> None:
        self.sum, self.images = torch.empty(0), 0

    def add(self, batch: torch.Tensor) -> None:
        """Take in the tokens of a batch.

        Raises:
            GatedPromptError: it has another number of tokens than those before.
        """
        part = batch.float().sum(0).cpu().double()
        self._check(part)
        self.sum, self.images = (self.sum + part if self.images else part), self.images + len(batch)

    def merge(self, others: Sequence["Mean"]) -> None:
        for other in others:
            if other.images:
                self._check(other.sum)
                self.sum = self.sum + other.sum if self.images else other.sum
                self.images += other.images

    def value(self) -> torch.Tensor:
        """The mean (N, D)."""
        return self.sum / self.images

    def _check(self, part: torch.Tensor) -> None:
        if self.images and part.shape != self.sum.shape:
            raise GatedPromptError(
                f"images gave {len(self.sum)} and {len(part)} tokens. method='match' takes means over the images at "
                "each place, so all must have one size"
            )


@dataclass
class AttentionParts:
    """The modules of one block whose outputs and inputs are compared.

    `key`: its output holds keys in the channels `keys`. `value_weight`: (D, D). `output`: the projection after the
    attention, whose input are the mixed values.
    """

    key: nn.Module
    keys: slice
    value_weight: torch.Tensor
    output: nn.Module


def find_attention_parts(block: nn.Module) -> AttentionParts:
    """Key and value projection of a block, and the output projection: its one square Linear beside q, k and v.

    Raises:
        ArchitectureError: they cannot be distinguished.
    """
    named = {name.rpartition(".")[2]: module for name, module in block.named_modules()}
    fused = named.get(FUSED)
    key = fused or next((named[name] for name in KEY_NAMES if name in named), None)
    value = fused or next((named[name] for name in VALUE_NAMES if name in named), None)
    weight: torch.Tensor | None = getattr(value, "weight", None)
    if key is None or weight is None:
        raise ArchitectureError(
            f"no key and value projections ({', '.join(KEY_NAMES + VALUE_NAMES)}, {FUSED}) in "
            f"{type(block).__name__}. Use another method than 'match'."
        )
    width = weight.shape[1]
    inside = {id(part) for name in ("q_proj", "query", *KEY_NAMES, *VALUE_NAMES) if name in named
              for part in named[name].modules()}  # fmt: skip
    square = [
        module for module in block.modules()
        if isinstance(module, nn.Linear) and id(module) not in inside
        and (module.in_features, module.out_features) == (width, width)
    ]  # fmt: skip
    if len(square) != 1:
        raise ArchitectureError(
            f"{len(square)} square Linears beside q, k and v in {type(block).__name__}, expected one, the output "
            "projection of the attention. Use another method than 'match'."
        )
    last_third = _weight_of(value, weight, width)[-width:]
    return AttentionParts(key, slice(width, 2 * width) if fused else slice(None), last_third, square[0])


@torch.no_grad()
def _weight_of(projection: Any, weight: torch.Tensor, width: int) -> torch.Tensor:
    """The weight that a projection applies, that of a LoRA layer is measured, since its `weight` is the base's."""
    if isinstance(projection, nn.Linear) and not isinstance(projection, BaseTunerLayer):
        return weight.detach()
    inputs = torch.cat((torch.eye(width), torch.zeros(1, width))).to(weight.device, torch.float32)
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    outputs: torch.Tensor = projection.forward(inputs.to(dtype)).double()
    return (outputs[:-1] - outputs[-1]).T


class MatchedTokens:
    """Prompts of one block from the means of its tokens, keys and attention outputs.

    `random`: prompts (P, D) as they would start without images. `neighbours`: tokens that are averaged into one
    prompt. `orthogonal`: weight of the part outside the attention's reach.
    """

    def __init__(self, random: torch.Tensor, parts: AttentionParts, neighbours: int, orthogonal: float) -> None:
        self.tokens, self.keys, self.outputs = Mean(), Mean(), Mean()
        self.random, self.random_keys = random, random.new_empty(0, 0)
        self.value_weight = parts.value_weight.double().cpu() if orthogonal else None
        self.neighbours, self.orthogonal = neighbours, orthogonal

    def add(self, tokens: torch.Tensor, visible: torch.Tensor | None) -> None:
        """Take in patch tokens (B, N, D) that enter the block."""
        refuse_padding(visible)
        self.tokens.add(tokens)

    def add_random_keys(self, keys: torch.Tensor) -> None:
        """Take in the keys (p, K) of the next p random prompts."""
        self.random_keys = torch.cat((self.random_keys.reshape(-1, keys.shape[1]), keys.double().cpu()))

    def merge(self, others: Sequence["MatchedTokens"]) -> None:
        """Take in the means of other processes."""
        for name in ("tokens", "keys", "outputs"):
            getattr(self, name).merge([getattr(other, name) for other in others])
        if not len(self.random_keys):  # this process had no images
            self.random_keys = next((o.random_keys for o in others if len(o.random_keys)), self.random_keys)

    def prompts(self) -> torch.Tensor:
        """Prompts (P, D) = (1 - orthogonal) * matched + orthogonal * expanded.

        Raises:
            GatedPromptError: no images, fewer tokens in an image than `neighbours`, or attention outputs that leave
                no direction free.
        """
        if not self.tokens.images:
            raise GatedPromptError("there were no images to start prompts from. Give at least one batch.")
        tokens = self.tokens.value()
        if self.neighbours > len(tokens):
            raise GatedPromptError(f"neighbours is {self.neighbours}, and an image has {len(tokens)} patch tokens")
        matched = match(tokens, self.keys.value(), self.random_keys, self.neighbours)
        if self.value_weight is None:
            return matched.float()
        expanded = expand(self.random, self.value_weight, self.outputs.value())
        return ((1 - self.orthogonal) * matched + self.orthogonal * expanded).float()


def match(tokens: torch.Tensor, keys: torch.Tensor, random_keys: torch.Tensor, neighbours: int) -> torch.Tensor:
    """For each random key (P, K) the mean of those tokens (N, D) whose keys (N, K) are nearest to it by cosine."""
    nearest = (F.normalize(random_keys, dim=-1) @ F.normalize(keys, dim=-1).T).topk(neighbours).indices
    return tokens[nearest].mean(1)


def expand(random: torch.Tensor, value_weight: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Prompts whose values are those of `random` (P, D) without what lies in the span of `outputs` (M, D).

    Raises:
        GatedPromptError: the outputs span the whole space.
    """
    left, sizes, _ = torch.linalg.svd(outputs.T, full_matrices=False)
    basis = left[:, sizes > sizes[0] * max(outputs.shape) * torch.finfo(torch.float32).eps]
    if basis.shape[1] == outputs.shape[1]:
        raise GatedPromptError(
            f"{len(outputs)} tokens of width {outputs.shape[1]}: the attention outputs span all directions and leave "
            "none for orthogonal prompts. Use orthogonal=0."
        )
    values = random @ value_weight.T
    rest = values - values @ basis @ basis.T
    return rest @ torch.linalg.pinv(value_weight).T


def match_tokens(
    look: HookedBase, vit: VisionTransformer, randoms: dict[int, torch.Tensor], batches: Iterable[Batch],
    neighbours: int, orthogonal: float,
) -> dict[int, MatchedTokens]:  # fmt: skip
    """Pass the images, and then the random prompts (P, D) of each block, to see their keys."""
    parts = {block: find_attention_parts(vit.blocks[block]) for block in randoms}
    starts = {b: MatchedTokens(random, parts[b], neighbours, orthogonal) for b, random in randoms.items()}
    for block, start in starts.items():
        part = parts[block]
        look.on_patches(block, start.add)
        look.on_output(part.key, partial(_add_keys, start.keys.add, part.keys, slice(look.prefix, None)))
        if orthogonal:
            look.on_input(part.output, start.outputs.add)
    last: Batch | None = None
    for batch in batches:
        look.run(batch)
        last = batch
    if last is None:
        return starts
    # The random prompts take the places of patches, as many as fit. Up to its keys a block works on each token alone.
    count, places = len(next(iter(randoms.values()))), len(next(iter(starts.values())).tokens.sum)
    for first in range(0, count, places):
        look.clear()
        for block, start in starts.items():
            rows = start.random[first : first + places]
            where = slice(look.prefix, look.prefix + len(rows))
            look.on_input(vit.blocks[block], partial(_put, rows, where))
            look.on_output(parts[block].key, partial(_add_first_keys, start, parts[block].keys, where))
        look.run(last)
    return starts


def _add_keys(add: Callable[[torch.Tensor], None], channels: slice, places: slice, output: torch.Tensor) -> None:
    add(output[:, places, channels])


def _add_first_keys(start: MatchedTokens, channels: slice, places: slice, output: torch.Tensor) -> None:
    start.add_random_keys(output[0, places, channels])


def _put(rows: torch.Tensor, places: slice, hidden: torch.Tensor) -> torch.Tensor:
    changed = hidden.clone()
    changed[:, places] = rows.to(hidden)
    return changed
