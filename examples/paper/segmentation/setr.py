# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""SETR-PUP (Zheng et al., CVPR 2021, https://arxiv.org/abs/2012.15840): a segmentation head on any plain ViT.

    patch tokens of the last block   -> LayerNorm -> 4 x [3x3 conv, batch norm, ReLU, bilinear x2] -> 1x1 conv
    those of the auxiliary blocks    -> LayerNorm -> 2 x [3x3 conv, batch norm, ReLU, bilinear x4] -> 1x1 conv

The factors are those for 16-pixel patches. For other patch sizes, the map is doubled until it has the size of the
image (4 pixels: twice), spread evenly over the convolutions.
"""

import inspect
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.utils import ModelOutput

from gated_prompt import GatedPromptError, find_vision_transformer
from gated_prompt.sharing.backbone import load_backbone

Grid = tuple[int, int]


@dataclass
class SegmentationOutput(ModelOutput):
    """Logits (B, K, H, W) of an image batch (B, 3, H, W). Auxiliary logits in training only."""

    logits: Tensor | None = None
    auxiliary_logits: tuple[Tensor, ...] | None = None


class UpHead(nn.Module):
    """Head that turns patch tokens into a map of class logits, upsampling step by step.

    Args:
        width: D, the width of the tokens.
        num_classes: K.
        num_convs: number of 3x3 convolutions.
        doublings: how often the map is doubled in total.
        channels: channels between the convolutions.
    """

    def __init__(self, width: int, num_classes: int, num_convs: int, doublings: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels if i else width, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for i in range(num_convs)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.factors = [2 ** (doublings * (i + 1) // num_convs - doublings * i // num_convs) for i in range(num_convs)]
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.get_parameter("0.weight"), mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, h w, D) -> logits (B, K, h f, w f) with f = 2 ** doublings."""
        maps = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        for conv, factor in zip(self.convs[:-1], self.factors[:-1], strict=True):
            maps = _upsample(conv(maps), factor)
        # 1x1 convolution and bilinear upsampling commute, so classify first, on the smaller map.
        return _upsample(self.classifier(self.convs[-1](maps)), self.factors[-1])


class AuxiliaryHeads(nn.Module):
    """One small head per auxiliary block. A separate module, since PEFT cannot save a bare ModuleList."""

    def __init__(self, number: int, width: int, num_classes: int, doublings: int, channels: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(UpHead(width, num_classes, 2, doublings, channels) for _ in range(number))

    def forward(self, tokens: list[Tensor], grid: Grid) -> tuple[Tensor, ...]:
        """Tokens (B, h w, D) of each block -> its logits (B, K, h f, w f)."""
        return tuple(head(each, grid) for head, each in zip(self.heads, tokens, strict=True))


class SetrPupForSemanticSegmentation(nn.Module, PyTorchModelHubMixin):
    """A ViT with `decode_head` and `auxiliary_head`, which gated_prompt trains and saves with the prompts.

    The backbone's hidden states contain no prompts, whichever adapter is active. The decode head reads the last hidden
    state after the backbone's final norm.

    Args:
        backbone: Hub id or folder of a ViT.
        num_classes: K.
        auxiliary_blocks: blocks followed by an auxiliary head, counted from 1. The paper uses 5 and 9 of 12.
        channels: channels of the heads.

    Raises:
        GatedPromptError: the backbone cannot be loaded, has no patches, or lacks one of the blocks.
        ArchitectureError: the backbone is not a plain ViT.
    """

    def __init__(self, backbone: str, num_classes: int, auxiliary_blocks: list[int], channels: int = 256) -> None:
        super().__init__()
        self.name_or_path = backbone  # PEFT records it in the adapter's config
        self.backbone = load_backbone(backbone)
        vit = find_vision_transformer(self.backbone)
        depth = len(vit.blocks)
        if not auxiliary_blocks or not all(1 <= block < depth for block in auxiliary_blocks):
            raise GatedPromptError(
                f"auxiliary_blocks are {auxiliary_blocks}. Give one or more of 1 to {depth - 1}, since the backbone "
                f"has {depth} blocks and the decode head follows the last."
            )
        size = getattr(self.backbone.config, "patch_size", None)
        if not isinstance(size, int):
            raise GatedPromptError(
                f"{type(self.backbone).__name__} of {backbone} has patch_size {size}. Give a transformers ViT with "
                "square patches that returns the hidden states of each block."
            )
        self.patch_size, self.num_prefix_tokens = size, vit.num_prefix_tokens
        self.auxiliary_blocks = list(auxiliary_blocks)
        doublings = max(1, round(math.log2(size)))
        self.decode_head = UpHead(vit.hidden_size, num_classes, 4, doublings, channels)
        self.auxiliary_head = AuxiliaryHeads(
            len(self.auxiliary_blocks), vit.hidden_size, num_classes, doublings, channels
        )
        forward = inspect.signature(type(self.backbone).forward).parameters
        self._any_size = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in forward else {}

    def forward(self, pixel_values: Tensor) -> SegmentationOutput:
        """Images (B, 3, H, W) of any size -> logits (B, K, H, W)."""
        size: Grid = (pixel_values.shape[2], pixel_values.shape[3])
        bottom, right = (-side % self.patch_size for side in size)
        padded = F.pad(pixel_values, (0, right, 0, bottom))
        grid = (padded.shape[2] // self.patch_size, padded.shape[3] // self.patch_size)
        output = self.backbone(padded, output_hidden_states=True, **self._any_size)
        logits = self._to_size(self.decode_head(self._patches(output.last_hidden_state), grid), padded, size)
        if not self.training:
            return SegmentationOutput(logits=logits)
        taps = [self._patches(output.hidden_states[block]) for block in self.auxiliary_blocks]
        auxiliary = tuple(self._to_size(each, padded, size) for each in self.auxiliary_head(taps, grid))
        return SegmentationOutput(logits=logits, auxiliary_logits=auxiliary)

    def _patches(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.num_prefix_tokens :]

    def _to_size(self, logits: Tensor, padded: Tensor, size: Grid) -> Tensor:
        """Upsample to the padded image (nothing to do for patches of 4, 8, 16, ...), then cut the padding off."""
        if logits.shape[2:] != padded.shape[2:]:
            logits = F.interpolate(logits, padded.shape[2:], mode="bilinear", align_corners=False)
        return logits[:, :, : size[0], : size[1]]


def setr_loss(output: SegmentationOutput, labels: Tensor, ignore_index: int, auxiliary_weight: float = 0.4) -> Tensor:
    """Cross-entropy of the decode head plus `auxiliary_weight` times that of each auxiliary head.

    The mean is over all pixels, including ignored ones, so that the loss of a crop without labels is 0 and not NaN.
    """
    if output.logits is None or output.auxiliary_logits is None:
        raise GatedPromptError("auxiliary logits are missing. Give the output of a model in train mode.")

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / labels.numel()

    return loss(output.logits) + auxiliary_weight * torch.stack([loss(each) for each in output.auxiliary_logits]).sum()


def _upsample(maps: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=float(factor), mode="bilinear", align_corners=False)


def poly_schedule(optimizer: torch.optim.Optimizer, steps: int, min_rate: float, power: float = 0.9) -> LambdaLR:
    """SETR's decay: each group's rate goes from its r to `min_rate`: (r - min_rate) (1 - t/T) ** power + min_rate."""

    def factor(first: float, step: int) -> float:
        return ((first - min_rate) * (1 - min(step, steps) / steps) ** power + min_rate) / first

    return LambdaLR(optimizer, [partial(factor, float(group["lr"])) for group in optimizer.param_groups])
