# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What one adapter does on one model, block by block; decided once, when the adapter is added or pruned.

In most blocks the prompts stand among the tokens. A block is passive where nothing reads what it makes of them: fresh
prompts follow (deep), or it is the last that runs and no pooling reads them. There the prompts are keys and values
only: queries, output projection and MLP run on the other tokens alone.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..config import GatedPromptConfig


class Step(NamedTuple):
    """What the prompts do at one block.

    `arrive`: the tokens that come in hold them (otherwise they come from the bank); `passive`: they are keys and
    values only; `stay`: the tokens that leave the block hold them; `gate`: row of the block's gate logit, if any.
    """

    arrive: bool
    passive: bool
    stay: bool
    gate: int | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Constants of one adapter; its tensors are in the bank.

    `first`: the block that prompts enter; `last`: the last block that runs, which they leave; `prompts`: the slice of
    the token axis that holds them; `gate_rows`: row of `gate_logits` by block. Steps are those of the blocks from
    `first` to `last`: `in_band` without passive blocks, `training` with those of the method, `evaluation` with those
    that were pruned too.
    """

    name: str
    config: GatedPromptConfig
    num_layers: int
    first: int
    last: int
    prompts: slice
    gate_rows: dict[int, int]
    in_band: tuple[Step, ...]
    training: tuple[Step, ...]
    evaluation: tuple[Step, ...]

    @property
    def blocks(self) -> range:
        """The blocks that the prompts pass."""
        return range(self.first, self.last + 1)

    @property
    def passive_blocks(self) -> list[int]:
        """The passive blocks of eval mode."""
        return [block for block, step in zip(self.blocks, self.evaluation, strict=True) if step.passive]

    def pruned(self, blocks: Collection[int]) -> "Plan":
        """The plan with these blocks passive in eval mode, beside those that always are."""
        always = {block for block, step in zip(self.blocks, self.training, strict=True) if step.passive}
        return replace(self, evaluation=_steps(self.config, self.last, self.gate_rows, always | set(blocks)))


def make_plan(adapter_name: str, config: GatedPromptConfig, num_layers: int, can_be_passive: Collection[int]) -> Plan:
    """The plan of an adapter whose config was fitted to a model of `num_layers` blocks.

    `can_be_passive`: blocks whose attention takes prompts as keys and values alone (`attention.py`).
    """
    start, last = config.num_prefix_tokens or 0, config.last_block(num_layers)
    gate_rows = {block: row for row, block in enumerate(config.gated_block_indices(num_layers))}
    unread = set(range(config.insert_at, last + 1)) if config.deep else {last}
    if config.pooling in ("prompts", "prompts_and_patches"):
        unread -= {last}
    steps = _steps(config, last, gate_rows, unread & set(can_be_passive))
    return Plan(
        name=adapter_name,
        config=config,
        num_layers=num_layers,
        first=config.insert_at,
        last=last,
        prompts=slice(start, start + config.num_virtual_tokens),
        gate_rows=gate_rows,
        in_band=_steps(config, last, gate_rows, ()),
        training=steps,
        evaluation=steps,
    )


def _steps(
    config: GatedPromptConfig, last: int, gate_rows: dict[int, int], passive: Collection[int]
) -> tuple[Step, ...]:
    steps, held = [], False
    for block in range(config.insert_at, last + 1):
        # Behind a passive block that took its prompts from the bank they are still those of the bank.
        stay = not config.deep and block < last and (held or block not in passive)
        steps.append(Step(arrive=held, passive=block in passive, stay=stay, gate=gate_rows.get(block)))
        held = stay
    return tuple(steps)
