# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One adapter on one model: its constants, and the role of its prompts in each block.

Both are decided once, when the adapter is added or pruned. In most blocks the prompts are part of the token sequence.
A block is passive if nothing reads the prompts that it returns: fresh prompts follow (deep), or it is the last block
that runs and no pooling reads them. In a passive block the prompts serve as keys and values only: queries, output
projection and MLP run on the other tokens alone.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..config import GatedPromptConfig


class Role(NamedTuple):
    """The role of the prompts in one block.

    `arrive`: the block's input contains them (otherwise they come from the bank). `passive`: they are keys and values
    only. `stay`: the block's output contains them. `gate`: row of the block's gate logit, if any.
    """

    arrive: bool
    passive: bool
    stay: bool
    gate: int | None


@dataclass(frozen=True, eq=False)
class Adapter:
    """Constants of one adapter. Its tensors are in the bank.

    `first`: the block at which the prompts are inserted. `last`: the last block that runs, after which they are
    removed. `prompts`: their slice of the token axis. `gate_rows`: row of `gate_logits` by block. Three tuples hold
    the roles in the blocks from `first` to `last`: `in_sequence` without passive blocks, `training` with those that
    are passive anyway, `evaluation` with the pruned ones too. With zero start, all blocks are passive in all three.
    """

    name: str
    config: GatedPromptConfig
    num_layers: int
    first: int
    last: int
    prompts: slice
    gate_rows: dict[int, int]
    in_sequence: tuple[Role, ...]
    training: tuple[Role, ...]
    evaluation: tuple[Role, ...]

    @property
    def blocks(self) -> range:
        """The blocks that the prompts pass through."""
        return range(self.first, self.last + 1)

    @property
    def passive_blocks(self) -> list[int]:
        """The blocks that are passive in eval mode."""
        return [block for block, role in zip(self.blocks, self.evaluation, strict=True) if role.passive]

    def pruned(self, blocks: Collection[int]) -> "Adapter":
        """Return a copy with these blocks passive in eval mode, in addition to those that always are."""
        always = {block for block, role in zip(self.blocks, self.training, strict=True) if role.passive}
        return replace(self, evaluation=_roles(self.config, self.last, self.gate_rows, always | set(blocks)))


def make_adapter(
    adapter_name: str, config: GatedPromptConfig, num_layers: int, can_be_passive: Collection[int]
) -> Adapter:
    """Return the adapter of a config that was prepared for a model of `num_layers` blocks.

    `can_be_passive`: blocks whose attention can take prompts as keys and values only (`attention.py`).
    """
    start, last = config.num_prefix_tokens or 0, config.last_block(num_layers)
    gate_rows = {block: row for row, block in enumerate(config.gated_block_indices(num_layers))}
    unread = set(range(config.insert_at, last + 1)) if config.deep else {last}
    if config.pooling in ("prompts", "prompts_and_patches"):
        unread -= {last}
    roles = _roles(config, last, gate_rows, unread & set(can_be_passive))
    return Adapter(
        name=adapter_name,
        config=config,
        num_layers=num_layers,
        first=config.insert_at,
        last=last,
        prompts=slice(start, start + config.num_virtual_tokens),
        gate_rows=gate_rows,
        in_sequence=roles if config.zero_start else _roles(config, last, gate_rows, ()),
        training=roles,
        evaluation=roles,
    )


def _roles(
    config: GatedPromptConfig, last: int, gate_rows: dict[int, int], passive: Collection[int]
) -> tuple[Role, ...]:
    roles, held = [], False
    for block in range(config.insert_at, last + 1):
        # After a passive block that took its prompts from the bank, the bank still holds the current prompts.
        stay = not config.deep and block < last and (held or block not in passive)
        roles.append(Role(arrive=held, passive=block in passive, stay=stay, gate=gate_rows.get(block)))
        held = stay
    return tuple(roles)
