# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone, which a process loads once. The model of every run is a copy of it."""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

from torch import nn

from ..architecture import find_vision_transformer
from ..errors import GatedPromptError
from ..sharing.backbone import load_backbone
from .features import backbone_key
from .recipe import BEST_METHOD, check_read_block


class Headed(Protocol):
    """What `twin` needs to know of what lies beside an adapter: how deep the backbone is, and the head on it."""

    @property
    def base(self) -> Mapping[str, Any]: ...

    def with_head(self, backbone: Any) -> Any: ...


class Backbone:
    """A Vision Transformer without a head: `depth` blocks, patches of `patch_size` pixels.

    Args:
        source: Hub id or folder.
        trust_remote_code: run Python code that the backbone brings.
        model: the backbone, where it is loaded already.

    Raises:
        GatedPromptError: it cannot be loaded, or is no Vision Transformer.
    """

    def __init__(self, source: str, trust_remote_code: bool = False, model: nn.Module | None = None) -> None:
        self.model: Any = load_backbone(source, trust_remote_code) if model is None else model
        vit = find_vision_transformer(self.model)
        self.depth, self.path = len(vit.blocks), vit.tower.path
        self.num_prefix_tokens = vit.num_prefix_tokens
        self.best_method = BEST_METHOD if vit.unfit_for_zero_start is None else "gated"
        self.patch_size = int(vit.projection.get_parameter("weight").shape[-1])
        # whether it can be loaded with fewer blocks
        self.can_end = getattr(self.model.config, "num_hidden_layers", None) == self.depth

    @cached_property
    def key(self) -> str:
        """A fingerprint of configuration and weights."""
        return backbone_key(self.model)

    def readable(self, asked: str) -> list[int]:
        """The blocks that may be the highest one that is read, by `--read_block`.

        Raises:
            GatedPromptError: there is no such block, or the backbone cannot end before its last one.
        """
        check_read_block(asked, self.depth)
        last = self.depth - 1
        if asked == "best":
            return list(range(self.depth)) if self.can_end else [last]
        block = last if asked == "last" else int(asked)
        if block < last and not self.can_end:
            raise GatedPromptError(
                f"{type(self.model).__name__} cannot end after block {block}. Give --read_block last."
            )
        return [block]

    def twin(self, predictor: Headed, own_weights: bool = False) -> nn.Module:
        """The backbone as `predictor.load_base` would load it, with a new head.

        Frozen weights are shared by all twins. `own_weights`: these are copied, since they are to be trained.
        """
        shared = {} if own_weights else {id(one): one for one in (*self.model.parameters(), *self.model.buffers())}
        model: Any = copy.deepcopy(self.model, shared)
        depth = predictor.base.get("num_hidden_layers", self.depth)
        if depth < self.depth:
            del model.get_submodule(self.path)[depth:]
            model.config.num_hidden_layers = depth
        if own_weights:
            model.requires_grad_(True)
        made: nn.Module = predictor.with_head(model)
        return made
