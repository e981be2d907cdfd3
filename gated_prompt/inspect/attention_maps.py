# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Where prompts and CLS look: their attention over the patches of an image, block by block."""

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
from ..tuner.forward import Request, requested
from .readouts import find_adapter


@dataclass(frozen=True, eq=False)
class PromptAttention:
    """Attention weights on the patches, mean over the heads, float32 on the CPU.

    A row of the attention matrix sums to 1 over all tokens; what is missing here went to the prefix tokens and to
    the prompts.

    Attributes:
        blocks: the K blocks that hold prompts, `insert_at` first.
        chosen: the C prompts that were asked for, counted from 0.
        prompts: (B, K, C, h, w), the rows of these prompts on the grid of h x w patches.
        cls: (B, K, h, w), the row of token 0; None where nothing stands before the prompts.
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
    """Attention of prompts and of CLS over the patches, in every block that holds prompts.

    The weights are the model's own (`output_attentions`), which only eager attention has. A model of transformers
    that was loaded with another implementation is switched for this call, and back.

    Args:
        model: a model with gated prompts, in eval mode.
        pixel_values: (B, 3, H, W), as the image processor returns them, on the model's device; for SigLIP 2
            (B, N, 3 p p).
        prompts: which of the P prompts, counted from 0; None: all.
        adapter_name: None: the active one.
        inputs: what else the model's forward needs (`input_ids` of two towers, SigLIP 2's `spatial_shapes`) or
            should get (`interpolate_pos_encoding=True`).

    Raises:
        GatedPromptError: no such adapter or prompt; the model is in training mode; the patches that reach its
            blocks are not the whole grid in its order (ViT-MAE), or the grids of a batch differ (SigLIP 2).
        UnsupportedOperationError: the model reports no attention weights (timm), or cannot be switched to eager.
    """
    bank, adapter = find_adapter(model, adapter_name)
    root = next(module for module in model.modules() if bank in module.children())
    chosen = _chosen(prompts, adapter.config.num_virtual_tokens)
    inputs = dict(inputs or {})
    if model.training:
        raise GatedPromptError("the model is in training mode, where prompts are dropped at random; call model.eval()")
    if not isinstance(root, PreTrainedModel):
        raise UnsupportedOperationError(f"{type(root).__name__} is no model of transformers: it reports no attention")
    if getattr(root.config, "mask_ratio", None) is not None:
        raise GatedPromptError(
            f"{type(root).__name__} drops and shuffles patches, so there is no grid; load the weights with "
            "ViTForImageClassification or ViTModel"
        )
    height, width = _grid(root, adapter.config.target_modules, pixel_values, inputs)
    with _eager(root), requested(Request(bank, adapters=(adapter,))):
        output = model(pixel_values=pixel_values, output_attentions=True, **inputs)
    maps = _attentions(output)
    blocks = list(adapter.blocks)
    if maps is None or len(maps) <= adapter.last or any(m is None for m in maps[: adapter.last + 1]):
        raise UnsupportedOperationError(
            f"{type(root).__name__} reports no attention weights; load it with attn_implementation='eager'"
        )
    found = maps[adapter.config.insert_at].shape[-1] - adapter.prompts.stop
    if found != height * width and "spatial_shapes" not in inputs:  # SigLIP 2 pads behind the patches
        raise GatedPromptError(
            f"{type(root).__name__} has {found} patches in its blocks, expected {height} x {width} square ones; "
            "there is no map of others"
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
        raise GatedPromptError(f"prompts is {chosen}; this adapter has {count} prompts, counted from 0; choose some")
    return chosen


@contextmanager
def _eager(root: PreTrainedModel) -> Iterator[None]:
    """While open, every part of the model computes its attention in eager mode, if it can be switched at all."""
    parts = [module for module in root.modules() if isinstance(module, PreTrainedModel)]
    before = [(part, part.config._attn_implementation) for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation("eager")
        yield
    finally:
        for part, implementation in before:  # from the outside in: a part passes its own on to those inside it
            part.set_attn_implementation(implementation)


def _attentions(output: Any) -> Sequence[torch.Tensor] | None:
    """The attention weights (B, H, N, N) of each block, of the vision tower where there are two."""
    tower = getattr(output, "vision_model_output", None)
    return getattr(output if tower is None else tower, "attentions", None)


def _grid(
    root: nn.Module, blocks_path: str | None, pixel_values: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[int, int]:
    if (shapes := inputs.get("spatial_shapes")) is not None:
        grids = {(int(height), int(width)) for height, width in shapes}
        if len(grids) != 1:
            raise GatedPromptError(f"the images have grids of {sorted(grids)} patches; give images of one size")
        return grids.pop()
    if pixel_values.ndim != 4:
        raise GatedPromptError(
            f"pixel_values has the shape {tuple(pixel_values.shape)}, expected (batch, channels, height, width); for "
            "patches in a row give their spatial_shapes in inputs"
        )
    channels, height, width = pixel_values.shape[1:]
    side = math.isqrt(find_vision_transformer(root, blocks_path).patch_values // channels)
    return height // side, width // side
