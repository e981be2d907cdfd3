# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Skip the blocks above an adapter's `read_from`: they return their input and compute nothing.

A hook can change the input and output of a block, but cannot keep it from running. These blocks therefore get a
replacement `forward`, an instance attribute that shadows that of their class. It has no tensors and no submodules, so
the keys of state dicts do not change, and it decides in each call whether to skip.
"""

from typing import Any

from torch import nn

from ..errors import UnsupportedOperationError
from .bank import PromptBank
from .forward import LOCAL, Forward, running


class Skips:
    """All `SkipBlock`s of one model: exactly on the blocks above the lowest `read_from` of its adapters."""

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank
        self.by_block: dict[int, SkipBlock] = {}

    def update(self) -> None:
        """Add and remove replacements so that they match the current adapters."""
        lowest = min((adapter.last for adapter in list(self.bank.adapters.values())), default=len(self.bank.blocks))
        for index, block in enumerate(self.bank.blocks):
            if index <= lowest and index in self.by_block:
                self.by_block.pop(index).remove()
            elif index > lowest and index not in self.by_block:
                self.by_block[index] = SkipBlock(self.bank, index, block)

    def remove(self) -> None:
        """Remove all replacements."""
        for skip in self.by_block.values():
            skip.remove()
        self.by_block.clear()


class SkipBlock:
    """Replaces a block's `forward`: returns the input if the block is to be skipped, else calls the original."""

    def __init__(self, bank: PromptBank, index: int, block: nn.Module) -> None:
        self.bank, self.index, self.block = bank, index, block
        self.before: Any = vars(block).get("forward")  # accelerate sets one, for example
        self.removed = False
        block.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = None if self.removed else running(self.bank)
        if forward is None or self.index <= forward.adapters[0].last:
            kind: Any = type(self.block)
            return kind.forward(self.block, *args, **kwargs) if self.before is None else self.before(*args, **kwargs)
        forward.skipped = self.index
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        # In the format of the last block that ran, with None in place of its attention weights.
        return hidden if LOCAL.extra_outputs is None else (hidden, *[None] * LOCAL.extra_outputs)

    def remove(self) -> None:
        """Restore the block's own `forward`; if something wraps this one by now, never skip again instead."""
        self.removed = True
        if vars(self.block).get("forward") is not self:
            return
        del self.block.forward
        if self.before is not None:
            self.block.forward = self.before


def check_skipped(forward: Forward, index: int, block: nn.Module) -> None:
    """Check that a block above `read_from` was skipped.

    Raises:
        UnsupportedOperationError: it ran, since its `forward` was replaced or its adapter deleted meanwhile.
    """
    if forward.depth and forward.skipped != index:
        raise UnsupportedOperationError(
            f"{type(block).__name__} {index} ran, although it lies above read_from={forward.adapters[0].last}: its "
            "adapter was deleted meanwhile, or the block's forward was replaced after the adapter was added; add the "
            "adapter last, and do not delete it while the model runs"
        )
