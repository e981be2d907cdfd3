# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A backbone that returns everything a linear head may read, so that heads of several kinds share one pass."""

import threading
from typing import Any

import torch
from torch import nn

from ..architecture import find_vision_transformer
from ..errors import AdapterMismatchError
from ..heads import Reads, read_tokens
from ..predictor import FILE


class Features(nn.Module):
    """A backbone, called for its tokens and for the features of its own class.

    Args:
        backbone: a classifier of transformers made with `num_labels=0`, whose `logits` are then what its head would
            read; or a model without a head, which returns `last_hidden_state`.

    Raises:
        ArchitectureError: the backbone is no Vision Transformer.
    """

    base_model_prefix = "backbone"  # asked for by PEFT, where there is a model of transformers inside

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.num_prefix_tokens = find_vision_transformer(backbone).num_prefix_tokens
        self.backbone, self.config = backbone, getattr(backbone, "config", None)
        body: nn.Module = getattr(backbone, "base_model", backbone)
        body.register_forward_hook(self._keep)
        self._returned = threading.local()  # what the body returned to this thread: a classifier does not show it

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._returned.tokens = output["last_hidden_state"]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, N, D), and features (B, F) of the backbone's own class, or None if it has no head."""
        try:
            own = getattr(self.backbone(pixel_values=pixel_values), "logits", None)
            return self._returned.tokens, own
        finally:
            vars(self._returned).clear()

    def read(self, tokens: torch.Tensor, own: torch.Tensor | None, reads: Reads | None) -> torch.Tensor:
        """What a head reads of the output of `forward`: (B, F).

        Raises:
            AdapterMismatchError: the backbone's own features are wanted, and it has no head.
        """
        if reads is not None:
            return read_tokens(tokens, self.num_prefix_tokens, reads)
        if own is None:
            raise AdapterMismatchError(
                f"{FILE} does not say what the adapter's head reads, and {type(self.backbone).__name__} has no head "
                "that would say it; load the backbone as a classifier"
            )
        return own
