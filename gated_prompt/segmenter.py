# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A segmentation head for every backbone: `TokenSegmenter` reads the patch tokens of one or several blocks."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from .architecture import find_vision_transformer
from .architecture.block_tokens import BlockTokens
from .errors import ArchitectureError, ConfigError, GatedPromptError

SegmentationHead = Literal["linear", "conv"]
IGNORE = 255
"""Label of pixels that loss and scores leave out."""


class ConvHead(nn.Module):
    """Two 3 x 3 convolutions of `channels` channels on the tokens of all blocks: (B, h, w, F) -> (B, h, w, K)."""

    def __init__(self, width: int, num_labels: int, channels: int = 128) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, channels, 1)
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.classify = nn.Conv2d(channels, num_labels, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = self.reduce(tokens.permute(0, 3, 1, 2))
        scores: Tensor = self.classify(maps + self.convs(maps))
        return scores.permute(0, 2, 3, 1)


class TokenSegmenter(nn.Module):
    """A Vision Transformer with a head on the patch tokens of some of its blocks.

    The tokens of each block, after the final norm, are concatenated. The head, `classifier`, is a linear map for each
    patch, or two convolutions. `get_peft_model` trains it with the prompts, which are never among the tokens that it
    reads, and the adapter's file holds it. transformers' Trainer takes the model like any class for semantic
    segmentation.

    Blocks above the highest one that is read run for nothing. Load the backbone with `num_hidden_layers`, or give the
    adapter `read_from`.

    Args:
        backbone: a Vision Transformer whose patch projection is a convolution over square patches.
        num_labels: K, the number of classes, or the names of the classes.
        blocks: indices of the blocks that are read, ascending from 0. None means the last.
        head: "linear" or "conv".

    Raises:
        ConfigError: `head` is unknown, or the backbone does not have one of `blocks`.
        ArchitectureError: `backbone` is not a Vision Transformer, or does not cut images into squares.

    Example:
        ```python
        from gated_prompt.heads import TokenSegmenter

        base = TokenSegmenter(backbone, ["road", "car"], blocks=[1, 3])
        model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=10))
        logits = model(pixel_values=pixel_values).logits  # (B, 2, H / patch, W / patch)
        ```
    """

    base_model_prefix = "backbone"  # PEFT reads this name if there is a model of transformers inside

    def __init__(
        self,
        backbone: nn.Module,
        num_labels: int | list[str],
        blocks: Sequence[int] | None = None,
        head: SegmentationHead = "linear",
    ) -> None:
        super().__init__()
        if head not in get_args(SegmentationHead):
            raise ConfigError(
                [f"head is {head!r}. Expected one of {', '.join(get_args(SegmentationHead))}."],
                subject="TokenSegmenter",
            )
        vit = find_vision_transformer(backbone)
        depth = len(vit.blocks)
        self.blocks = [depth - 1] if blocks is None else list(blocks)
        if (
            not self.blocks
            or self.blocks != sorted(set(self.blocks))
            or not 0 <= self.blocks[0] <= max(self.blocks) < depth
        ):
            raise ConfigError(
                [f"blocks is {self.blocks}. List blocks of 0 to {depth - 1} once each, in ascending order."]
            )
        weight = vit.projection.get_parameter("weight")
        if weight.ndim != 4 or weight.shape[-1] != weight.shape[-2]:
            raise ArchitectureError(
                f"{type(backbone).__name__} does not cut images into square patches by a convolution, so its tokens "
                "form no map. Use another backbone."
            )
        self.patch_size = int(weight.shape[-1])
        names = num_labels if isinstance(num_labels, list) else [f"LABEL_{i}" for i in range(num_labels)]
        self.backbone = backbone
        self.name_or_path: str | None = getattr(backbone, "name_or_path", None)  # PEFT records it with an adapter
        like = next(p for p in backbone.parameters() if p.is_floating_point())
        width = vit.hidden_size * len(self.blocks)
        made: nn.Module = nn.Linear(width, len(names)) if head == "linear" else ConvHead(width, len(names))
        self.classifier = made.to(like.device, like.dtype)
        self.config = copy.deepcopy(getattr(backbone, "config", None))
        if self.config is not None:
            self.config.id2label = dict(enumerate(names))
            self.config.label2id = {name: i for i, name in enumerate(names)}
        parameters = inspect.signature(type(backbone).forward).parameters
        self._any_size = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        self._block_tokens = BlockTokens(backbone, vit, self.blocks)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SemanticSegmenterOutput:
        """Return logits (B, K, H / patch, W / patch) of images (B, 3, H, W) whose sides are multiples of the patch.

        With `labels` (B, height, width) of any size, the loss is the mean cross entropy of the logits, bilinearly
        upsampled to that size, over the pixels whose label is not 255. Trainer passes `num_items_in_batch`, the number
        of labels in all batches of an optimizer step. The loss is then this batch's part of the average over those.
        `kwargs` go to the backbone.

        Raises:
            GatedPromptError: a side is not a multiple of the patch.
        """
        logits = self.scores(self.read(pixel_values, **kwargs))
        loss = None
        if labels is not None:
            large = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(large, labels.long(), ignore_index=IGNORE)
            if num_items_in_batch is not None:
                loss = loss * labels.numel() / num_items_in_batch
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    def read(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Return what the head reads of images (B, 3, H, W): (B, H / patch, W / patch, blocks x D)."""
        height, width = pixel_values.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise GatedPromptError(
                f"the images have {height} x {width} pixels. Both sides must be multiples of the patch size, "
                f"{self.patch_size}. Resize or pad them."
            )
        grid = (height // self.patch_size, width // self.patch_size)
        _, states = self._block_tokens.read(self.backbone, pixel_values, **{**self._any_size, **kwargs})
        count = grid[0] * grid[1]  # patches are the last tokens
        return torch.cat([tokens[:, -count:].unflatten(1, grid) for tokens in states], dim=-1)

    def scores(self, tokens: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of what `read` returned, in the precision of the head even under autocast."""
        if not torch.is_autocast_enabled(tokens.device.type):
            return self.classifier(tokens).permute(0, 3, 1, 2)
        precise = next(self.classifier.parameters()).dtype
        with torch.autocast(tokens.device.type, enabled=False):
            return self.classifier(tokens.to(precise)).permute(0, 3, 1, 2)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Enable the backbone's, without reentrance, under which the tokens that are read would pass no gradient."""
        backbone: Any = self.backbone
        settings = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings, **kwargs)
