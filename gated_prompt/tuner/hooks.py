# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Attach the hooks to a model. The other files of this package define what they do.

Hooks are instances of module-level classes that hold the bank and a block index, so models with hooks can be copied
and pickled.
"""

from typing import Any

import torch
from torch import nn

from ..architecture import VisionTransformer
from ..architecture.batches import Inputs
from ..architecture.block_tokens import BlockTokens
from ..architecture.masks import widen_mask
from ..errors import UnsupportedOperationError
from .attention import AttentionRoute, ScaleQueries
from .bank import PromptBank
from .blocks import CheckCalls, PromptBlock, RequireInputGradient
from .forward import running
from .scope import Replacement, Scope, refuse_replicas


def attach_hooks(bank: PromptBank, vit: VisionTransformer) -> None:
    """Register all hooks and keep their handles in `bank.handles`."""
    handles, levels = bank.handles, range(0, 2 * len(vit.ancestors), 2)
    bank.can_be_passive = vit.can_be_passive
    handles.append(vit.embeddings.register_forward_hook(RequireInputGradient(bank)))
    for index, (block, parts) in enumerate(zip(vit.blocks, vit.attentions, strict=True)):
        if parts.uses_interface:
            handles.append(AttentionRoute(bank, index, parts))
        else:
            handles.append(parts.query_output.register_forward_hook(ScaleQueries(bank, index, parts)))
        handles.append(PromptBlock(bank, block, index, levels[-1], parts.uses_interface))
    handles.append(vit.blocks[-1].register_forward_hook(CheckCalls(bank, levels[-1])))
    handles.append(vit.ancestors[0].register_forward_pre_hook(refuse_replicas))
    # What notes tokens inside the backbone has to see one structure of a mixed batch at a time.
    readers = [m for m in vit.ancestors if any(isinstance(value, BlockTokens) for value in vars(m).values())]
    body = levels[vit.ancestors.index((readers or [vit.tower.body])[0])]
    for ancestor, level in zip(vit.ancestors, levels, strict=True):
        handles.append(Scope(bank, ancestor, "forward", level, body, levels[-1]))
        if hasattr(ancestor, "forward_features"):  # timm and Meta call it directly
            handles.append(Scope(bank, ancestor, "forward_features", level + 1, body, levels[-1]))
        if hasattr(ancestor, "forward_intermediates"):
            handles.append(RefuseIntermediates(bank, ancestor, "forward_intermediates"))
    for bias in vit.position_biases:
        handles.append(bias.module.register_forward_pre_hook(KeepBiasSize(bank), with_kwargs=True))
        if bias.block is not None:  # the blocks receive a shared bias as a mask
            handles.append(bias.module.register_forward_hook(WidenBias(bank, bias.block)))


class RefuseIntermediates(Replacement):
    """Replaces timm's `forward_intermediates`, which reshapes the output of blocks to maps, prompts included.

    Nothing can remove the prompts first. If the number of tokens happens to divide, the maps would be silently wrong.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it, unless an adapter is in use."""
        if not self.removed and running(self.bank) is not None:
            raise UnsupportedOperationError(
                f"forward_intermediates of {type(self.module).__name__} (in transformers: output_hidden_states=True) "
                "would return maps that contain prompts. Read the blocks with forward hooks, or use disable_adapter()."
            )
        return self.original(*args, **kwargs)


class KeepBiasSize:
    """Before a position bias is computed: request it for the number of tokens without prompts.

    With `interpolate_pos_encoding` the bias is resized to `dim_size`, the length of the hidden states including
    prompts. Without the prompts, this resizing changes nothing.
    """

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
        if (forward := running(self.bank)) is None or kwargs.get("dim_size") is None:
            return None
        height, width = args[0] if args else kwargs["window_size"]
        return args, {**kwargs, "dim_size": forward.adapters[0].prompts.start + height * width}


class WidenBias:
    """After a block's own position bias (1, H, N, N) is computed: insert rows and columns of zeros for the prompts."""

    def __init__(self, bank: PromptBank, index: int) -> None:
        self.bank, self.index = bank, index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        if (
            (forward := running(self.bank)) is None
            or not forward.adapters[0].first <= self.index <= forward.adapters[0].last
            or forward.roles[self.index - forward.adapters[0].first].passive
        ):
            return None
        return widen_mask(output, forward.adapters[0].prompts, output.shape[-1])
