# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Blocks above an adapter's `read_from`: they hand on the tokens that they get, and compute nothing.

A hook can change what goes into a block and what comes out, but not keep it from running. So these blocks get a
`forward` of their own, an instance attribute in front of that of their class. It holds no tensors and no modules as
children, so names in state dicts stay as they are, and it decides anew in each call.
"""

from typing import Any

from torch import nn

from ..errors import UnsupportedOperationError
from .bank import PromptBank
from .forward import LOCAL, Forward, running


class Skips:
    """The skips of one model: on the blocks above the lowest `read_from` of its adapters, and on no others."""

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank
        self.by_block: dict[int, SkipBlock] = {}

    def fit(self) -> None:
        """Put on and take off what the adapters of this moment need."""
        lowest = min((plan.last for plan in list(self.bank.plans.values())), default=len(self.bank.blocks))
        for index, block in enumerate(self.bank.blocks):
            if index <= lowest and index in self.by_block:
                self.by_block.pop(index).remove()
            elif index > lowest and index not in self.by_block:
                self.by_block[index] = SkipBlock(self.bank, index, block)

    def remove(self) -> None:
        """Take all of them off."""
        for skip in self.by_block.values():
            skip.remove()
        self.by_block.clear()


class SkipBlock:
    """In the place of a block's `forward`: hand on the tokens, or call the `forward` that was there."""

    def __init__(self, bank: PromptBank, index: int, block: nn.Module) -> None:
        self.bank, self.index, self.block = bank, index, block
        self.before: Any = vars(block).get("forward")  # accelerate puts one there
        self.removed = False
        block.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = None if self.removed else running(self.bank)
        if forward is None or self.index <= forward.plans[0].last:
            kind: Any = type(self.block)
            return kind.forward(self.block, *args, **kwargs) if self.before is None else self.before(*args, **kwargs)
        forward.skipped = self.index
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        # In the form in which the block that ran last returned its tokens, without its attention weights.
        return hidden if LOCAL.beside is None else (hidden, *[None] * LOCAL.beside)

    def remove(self) -> None:
        """Give the block its own `forward` back; where another wraps this one by now, do nothing from now on."""
        self.removed = True
        if vars(self.block).get("forward") is not self:
            return
        del self.block.forward
        if self.before is not None:
            self.block.forward = self.before


def check_skipped(forward: Forward, index: int, block: nn.Module) -> None:
    """Refuse the output of a block that was to be skipped and ran.

    Raises:
        UnsupportedOperationError: its `forward` was replaced, or the adapter deleted while the model was running.
    """
    if forward.depth and forward.skipped != index:
        raise UnsupportedOperationError(
            f"{type(block).__name__} {index} ran, though read_from={forward.plans[0].last} leaves it out: its adapter "
            "was deleted meanwhile, or something took the place of the block's forward after the adapter was added"
        )
