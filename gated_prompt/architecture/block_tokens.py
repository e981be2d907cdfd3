# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The tokens after several blocks of a backbone, from one forward, as a model that ended there would return them.

They have passed the final norm, and hold no prompts. Hooks find them. What one forward notes lies in a thread-local
object, so that any number of threads can call the model.
"""

import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedOperationError
from .vision_transformer import VisionTransformer


class Noted:
    """What the hooks see in one forward: `count`, the tokens of an image before prompts join them. `last`, the output
    of the latest block. `states`, those of the wanted blocks. `norm`, what reads the output of the last block.
    """

    def __init__(self, depth: int) -> None:
        self.depth, self.done = depth, 0
        self.count: int | None = None
        self.last: Tensor | None = None
        self.states: dict[int, Tensor] = {}
        self.norm: nn.Module | None = None


class _Local(threading.local):
    def __init__(self) -> None:  # runs in each thread
        self.noted: Noted | None = None


LOCAL = _Local()


class BlockTokens:
    """Reads a backbone after `blocks`, indices from 0 in ascending order. Create it before an adapter is added.

    A block that an adapter's `read_from` skips has no tokens to read, which is an error. `may_skip`: what the last
    block that ran returned takes their place, for batches of which some images alone read that block.
    """

    def __init__(
        self, backbone: nn.Module, vit: VisionTransformer, blocks: Sequence[int], may_skip: bool = False
    ) -> None:
        self.may_skip = may_skip
        self.blocks, self.prefix, self.depth = tuple(blocks), vit.num_prefix_tokens, len(vit.blocks)
        inside = {id(module) for block in vit.blocks for module in block.modules()}
        self.handles: list[RemovableHandle] = [
            vit.blocks[0].register_forward_pre_hook(_CountTokens(), with_kwargs=True)
        ]
        self.handles += [block.register_forward_hook(_Note(i), with_kwargs=True) for i, block in enumerate(vit.blocks)]
        for module in backbone.modules():
            if id(module) not in inside and not any(True for _ in module.children()):
                self.handles.append(module.register_forward_pre_hook(_FindNorm()))

    def read(self, backbone: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """Call the backbone. Return its output and the tokens (B, N, D) after each of the blocks."""
        before, LOCAL.noted = LOCAL.noted, Noted(self.depth)
        try:
            output = backbone(*args, **kwargs)
            noted = LOCAL.noted
        finally:
            LOCAL.noted = before
        missing = [block for block in self.blocks if block not in noted.states]
        if missing and self.may_skip and noted.last is not None:
            noted.states |= dict.fromkeys(missing, noted.last)
        elif missing:
            raise UnsupportedOperationError(
                f"block {missing[0]} is to be read, but did not run: its adapter has a read_from below it. Make the "
                f"adapter with read_from={self.blocks[-1]}, or None."
            )
        norm = noted.norm
        states = [self._without_prompts(noted.states[block], noted.count) for block in self.blocks]
        return output, [state if norm is None else norm(state) for state in states]

    def _without_prompts(self, tokens: Tensor, count: int | None) -> Tensor:
        prompts = 0 if count is None else tokens.shape[1] - count
        if prompts == 0:
            return tokens
        kept = [*range(self.prefix), *range(self.prefix + prompts, tokens.shape[1])]
        return tokens[:, kept]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class _CountTokens:
    """Before the first block, and before prompts enter it: that hook is younger."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if LOCAL.noted is not None:
            LOCAL.noted.count = (args[0] if args else kwargs["hidden_states"]).shape[1]


class _Note:
    """Hook after a block: note its output."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if LOCAL.noted is not None:
            LOCAL.noted.last = output[0] if isinstance(output, tuple) else output
            if LOCAL.noted.last is not (args[0] if args else kwargs["hidden_states"]):  # it was not skipped
                LOCAL.noted.states[self.index] = LOCAL.noted.last
            LOCAL.noted.done = self.index + 1


class _FindNorm:
    """Before a module outside of the blocks: the first that gets the output of the last block is the final norm."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        noted = LOCAL.noted
        if noted is None or noted.norm is not None or noted.done < noted.depth:
            return
        if args and args[0] is noted.last:
            noted.norm = module
