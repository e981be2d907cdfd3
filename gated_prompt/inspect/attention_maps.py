# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The attention of prompts and of CLS over the patches of an image, per block."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architecture import find_vision_transformer
from ..errors import GatedPromptError, UnsupportedOperationError
from ..tuner.request import Request, requested
from .readouts import find_adapter


@dataclass(frozen=True, eq=False)
class PromptAttention:
    """Attention weights on the patches, mean over the heads, float32 on the CPU.

    A row of the attention matrix sums to 1 over all tokens. The rest of each row here belongs to the prefix tokens and
    the prompts.

    Attributes:
        blocks: the K blocks with prompts, from `insert_at` on.
        chosen: indices of the C requested prompts, counted from 0.
        prompts: (B, K, C, h, w), the rows of these prompts on the grid of h x w patches.
        cls: (B, K, h, w), the row of token 0. None if there are no prefix tokens.
    """

    blocks: list[int]
    chosen: list[int]
    prompts: torch.Tensor
    cls: torch.Tensor | None


@torch.no_grad()
def prompt_attention(
    model: nn.Module,
    pixel_values: torch.Tensor,
    *,
    prompts: Sequence[int] | None = None,
    adapter_name: str | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> PromptAttention:
    """Return the attention of prompts and of CLS over the patches, in every block with prompts.

    The weights are the model's own (`output_attentions`), which only eager attention returns. A model that was loaded
    with another implementation is switched to eager for this call.

    Args:
        model: a model with gated prompts, in eval mode.
        pixel_values: (B, 3, H, W), as the image processor returns them, on the model's device. For SigLIP 2
            (B, N, 3 p p).
        prompts: indices of the prompts, counted from 0. None means all P.
        adapter_name: None means the active adapter.
        inputs: other arguments of the model's forward, such as `input_ids` of a model with two towers, SigLIP 2's
            `spatial_shapes`, or `interpolate_pos_encoding=True`.

    Raises:
        GatedPromptError: there is no such adapter or prompt, the model is in training mode, its blocks do not get all
            patches in order (ViT-MAE), or the grids in the batch differ (SigLIP 2).
        UnsupportedOperationError: the model returns no attention weights (timm), or cannot be switched to eager, or
            the prompts have zero start, so nothing attends from them.

    Example:
        ```python
        from gated_prompt.plots import prompt_attention

        attention = prompt_attention(model.eval(), pixel_values)
        attention.prompts.shape  # (images, blocks, prompts, rows, columns)
        ```
    """
    bank, adapter = find_adapter(model, adapter_name)
    root = next(module for module in model.modules() if bank in module.children())
    chosen = _chosen(prompts, adapter.config.num_virtual_tokens)
    inputs = dict(inputs or {})
    if adapter.config.zero_start:
        raise UnsupportedOperationError(
            "zero-start prompts have keys and values but no queries, so there is no attention of prompts to show. "
            "gated_prompt.head_gates(model) shows how much each head reads from them"
        )
    if model.training:
        raise GatedPromptError(
            "the model is in training mode, which drops prompt values at random. Call model.eval()."
        )
    if not any(isinstance(module, PreTrainedModel) for module in root.modules()):
        raise UnsupportedOperationError(
            f"{type(root).__name__} is not a transformers model: it returns no attention weights"
        )
    if getattr(root.config, "mask_ratio", None) is not None:
        raise GatedPromptError(
            f"{type(root).__name__} drops and shuffles patches, so they form no grid. Load the weights with "
            "ViTForImageClassification or ViTModel."
        )
    height, width = _grid(root, adapter.config.target_modules, pixel_values, inputs)
    with _eager(root), requested(Request(bank, adapters=(adapter,))):
        output = model(pixel_values=pixel_values, output_attentions=True, **inputs)
    maps = _attentions(output)
    blocks = list(adapter.blocks)
    if maps is None or len(maps) <= adapter.last or any(m is None for m in maps[: adapter.last + 1]):
        raise UnsupportedOperationError(
            f"{type(root).__name__} returns no attention weights. Load it with attn_implementation='eager'."
        )
    found = maps[adapter.config.insert_at].shape[-1] - adapter.prompts.stop
    if found != height * width and "spatial_shapes" not in inputs:  # SigLIP 2 pads after the patches
        raise GatedPromptError(
            f"{type(root).__name__} has {found} patches in its blocks, expected a grid of {height} x {width} "
            "square patches"
        )
    patches = slice(adapter.prompts.stop, adapter.prompts.stop + height * width)
    rows = torch.stack([maps[block].float().mean(dim=1)[..., patches] for block in blocks], dim=1)
    rows = rows.unflatten(-1, (height, width)).cpu()  # (B, K, tokens, h, w)
    return PromptAttention(
        blocks=blocks,
        chosen=chosen,
        prompts=rows[:, :, [adapter.prompts.start + index for index in chosen]],
        cls=rows[:, :, 0] if adapter.prompts.start else None,
    )


def _chosen(prompts: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(count)) if prompts is None else list(prompts)
    wrong = [index for index in chosen if not 0 <= index < count]
    if wrong or not chosen:
        raise GatedPromptError(f"prompts is {chosen}. Expected one or more indices from 0 to {count - 1}.")
    return chosen


@contextmanager
def _eager(root: nn.Module) -> Iterator[None]:
    """Switch every part of the model to eager attention, if it can be switched."""
    parts = [module for module in root.modules() if isinstance(module, PreTrainedModel)]
    before = [(part, part.config._attn_implementation) for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation("eager")
        yield
    finally:
        for part, implementation in before:  # from the outside in: a part sets that of its submodules too
            part.set_attn_implementation(implementation)


def _attentions(output: Any) -> Sequence[torch.Tensor] | None:
    """Return the attention weights (B, H, N, N) of each block. Of the vision tower, if there are two towers."""
    tower = getattr(output, "vision_model_output", None)
    return getattr(output if tower is None else tower, "attentions", None)


def _grid(
    root: nn.Module, blocks_path: str | None, pixel_values: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[int, int]:
    if (shapes := inputs.get("spatial_shapes")) is not None:
        grids = {(int(height), int(width)) for height, width in shapes}
        if len(grids) != 1:
            raise GatedPromptError(f"the grids of patches differ: {sorted(grids)}. Give images of one size.")
        return grids.pop()
    if pixel_values.ndim != 4:
        raise GatedPromptError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, channels, height, width). For a "
            "sequence of patches, also give spatial_shapes in inputs."
        )
    channels, height, width = pixel_values.shape[1:]
    side = math.isqrt(find_vision_transformer(root, blocks_path).patch_values // channels)
    return height // side, width // side
