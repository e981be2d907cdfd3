# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the hooks need to know of one adapter on one model."""

from dataclasses import dataclass

from ..config import GatedPromptConfig


@dataclass(frozen=True)
class Plan:
    """Constants of one adapter; its tensors are in the bank.

    `prompts`: the slice of the token axis that holds the prompts; `gate_rows`: row of `gate_logits` by block.
    """

    name: str
    config: GatedPromptConfig
    num_layers: int
    prompts: slice
    gate_rows: dict[int, int]

    @property
    def blocks(self) -> range:
        """The blocks that the prompts pass."""
        return range(self.config.insert_at, self.num_layers)


def make_plan(adapter_name: str, config: GatedPromptConfig, num_layers: int) -> Plan:
    """The plan of an adapter whose config was fitted to a model of `num_layers` blocks."""
    first = config.num_prefix_tokens or 0
    return Plan(
        name=adapter_name,
        config=config,
        num_layers=num_layers,
        prompts=slice(first, first + config.num_virtual_tokens),
        gate_rows={block: row for row, block in enumerate(config.gated_block_indices(num_layers))},
    )
