# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A backbone that returns everything a linear head may read, so that heads of several kinds share one pass."""

import copy
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, AutoModelForImageClassification

from .. import heads
from ..architecture import find_vision_transformer
from ..architecture.block_tokens import BlockTokens
from ..errors import AdapterMismatchError, GatedPromptError
from ..heads import Reads, read_tokens
from ..predictor import FILE
from ..sharing.backbone import check_backbone


def load_backbone(backbone: str) -> Any:
    """A classifier without its last layer, or, where transformers has no classifier for it, the bare backbone.

    Raises:
        GatedPromptError: it cannot be loaded.
    """
    check_backbone(backbone)
    try:
        if type(AutoConfig.from_pretrained(backbone)) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:  # DINOv3, MAE
            return heads.load_backbone(backbone)
        return AutoModelForImageClassification.from_pretrained(
            backbone, num_labels=0, ignore_mismatched_sizes=True, dtype="float32"
        )
    except (OSError, ValueError) as error:
        raise GatedPromptError(f"cannot load --backbone {backbone!r}: {str(error).splitlines()[0]}") from error


class Seen(NamedTuple):
    """What a backbone made of images: its tokens (B, N, D), those after the blocks that were asked for, and the
    features (B, F) of its own class, or None if it has no head. The attention of each block, if it was asked for.
    """

    tokens: Tensor
    after: dict[int, Tensor]
    own: Tensor | None
    attentions: tuple[Tensor, ...] | None


class Features(nn.Module):
    """A backbone, called for its tokens and for the features of its own class.

    Args:
        backbone: a classifier of transformers made with `num_labels=0`, whose `logits` are then what its head would
            read, or a model without a head, which returns `last_hidden_state`.

    Raises:
        ArchitectureError: the backbone is no Vision Transformer.
    """

    base_model_prefix = "backbone"  # PEFT reads this name if there is a model of transformers inside

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        vit = find_vision_transformer(backbone)
        self.num_prefix_tokens, self.num_blocks = vit.num_prefix_tokens, len(vit.blocks)
        self.backbone, self.config = backbone, getattr(backbone, "config", None)
        self._reader = BlockTokens(backbone, vit, range(self.num_blocks), may_skip=True)
        body: nn.Module = getattr(backbone, "base_model", backbone)
        body.register_forward_hook(self._keep)
        self._returned = threading.local()  # what the body returned to this thread: a classifier does not show it

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._returned.tokens = output["last_hidden_state"]

    def forward(self, pixel_values: Tensor, blocks: Sequence[int] = (), output_attentions: bool | None = None) -> Seen:
        """What heads read, with the tokens after each of `blocks`, which have passed the final norm."""
        reader = copy.copy(self._reader)  # its hooks note every block. This call reads some
        reader.blocks = tuple(blocks)
        try:
            output, after = reader.read(self.backbone, pixel_values=pixel_values, output_attentions=output_attentions)
            own, attentions = (getattr(output, name, None) for name in ("logits", "attentions"))
            return Seen(self._returned.tokens, dict(zip(blocks, after, strict=True)), own, attentions)
        finally:
            vars(self._returned).clear()

    def read(self, seen: Seen, reads: Reads | None, blocks: Sequence[int] | None) -> Tensor:
        """What a head reads of the output of `forward`: (B, F).

        Raises:
            AdapterMismatchError: the backbone's own features are wanted, and it has no head.
        """
        if reads is not None:
            tokens = [seen.tokens] if blocks is None else [seen.after[block] for block in blocks]
            return torch.cat([read_tokens(one, self.num_prefix_tokens, reads) for one in tokens], dim=-1)
        if seen.own is None:
            raise AdapterMismatchError(
                f"{FILE} does not say what the adapter's head reads, and {type(self.backbone).__name__} has no head "
                "that would say it. Load the backbone as a classifier."
            )
        return seen.own
