# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Attach the hooks to a model; the other files of this package define what they do.

Hooks are instances of module-level classes that hold the bank and a block index, so models with hooks can be copied
and pickled.
"""

from typing import Any

from torch import nn

from ..architecture import VisionTransformer
from ..errors import UnsupportedOperationError
from .attention import AttentionRoute, ScaleQueries
from .bank import PromptBank
from .blocks import EnterBlock, LeaveBlock, RequireInputGradient
from .forward import EnterModel, LeaveModel, running
from .masks import KeepBiasSize, WidenBias
from .skip import Skips


def attach_hooks(bank: PromptBank, vit: VisionTransformer) -> None:
    """Register all hooks and keep their handles in `bank.handles`."""
    handles, bank.skips = bank.handles, Skips(bank)
    handles.append(bank.skips)
    bank.can_be_passive = vit.can_be_passive
    handles.append(vit.embeddings.register_forward_hook(RequireInputGradient(bank)))
    for index, (block, parts) in enumerate(zip(vit.blocks, vit.attentions, strict=True)):
        if parts.uses_interface:
            handles.append(AttentionRoute(bank, index, parts))
        else:
            handles.append(parts.query_output.register_forward_hook(ScaleQueries(bank, index, parts)))
        handles.append(block.register_forward_pre_hook(EnterBlock(bank, index), with_kwargs=True))
        # Before all other hooks of the block: transformers 5 captures hidden states in its own hook.
        leave = LeaveBlock(bank, index, parts.uses_interface)
        handles.append(block.register_forward_hook(leave, with_kwargs=True, prepend=True))
    for ancestor in vit.ancestors:
        innermost = ancestor is vit.ancestors[-1]
        handles.append(ancestor.register_forward_pre_hook(EnterModel(bank, innermost), with_kwargs=True))
        handles.append(ancestor.register_forward_hook(LeaveModel(bank, innermost), always_call=True))
        if hasattr(ancestor, "forward_intermediates"):
            handles.append(RefuseIntermediates(bank, ancestor))
    for bias in vit.position_biases:
        handles.append(bias.module.register_forward_pre_hook(KeepBiasSize(bank), with_kwargs=True))
        if bias.block is not None:  # the blocks receive a shared bias as a mask
            handles.append(bias.module.register_forward_hook(WidenBias(bank, bias.block)))


class RefuseIntermediates:
    """Replaces timm's `forward_intermediates`, which reshapes the output of blocks to maps, prompts included.

    That method calls no hooks, so the prompts cannot be removed first; if the number of tokens happens to divide, the
    maps would be silently wrong. This is an instance attribute that shadows the method and is removed like a hook.
    """

    def __init__(self, bank: PromptBank, module: nn.Module) -> None:
        self.bank, self.module = bank, module
        module.forward_intermediates = self  # type: ignore[assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if running(self.bank) is not None:
            raise UnsupportedOperationError(
                f"forward_intermediates of {type(self.module).__name__} (in transformers: output_hidden_states=True) "
                "would return maps that contain prompts; read the blocks with forward hooks, or use disable_adapter()"
            )
        kind: Any = type(self.module)
        return kind.forward_intermediates(self.module, *args, **kwargs)

    def remove(self) -> None:
        """Restore the module's own method."""
        del self.module.forward_intermediates
