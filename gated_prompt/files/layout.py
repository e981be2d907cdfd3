# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Names and shapes of the parameters of one adapter, in memory and in its file."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import GatedPromptConfig

BANK = "gated_prompt"  # name of the parameter bank on the base model's root; must not contain PEFT's prefix
TOKENS, TOKENS_A, TOKENS_B, GATE_LOGITS, TEMPERATURES = PARAMETERS = (
    "gated_prompt_tokens",
    "gated_prompt_tokens_a",
    "gated_prompt_tokens_b",
    "gated_prompt_gate_logits",
    "gated_prompt_temperatures",
)


def gated_block_indices(config: "GatedPromptConfig", num_layers: int) -> list[int]:
    """Indices of the gated blocks: those asked for, or all from `insert_at` but the last."""
    if config.deep or not config.gates:
        return []
    return config.gated_blocks if config.gated_blocks is not None else list(range(config.insert_at, num_layers - 1))


def parameter_shapes(config: "GatedPromptConfig", num_layers: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of one adapter, without the head.

    `gated_prompt_tokens` (S, P, D) with S = L - k when deep, else 1; with a `prompt_rank` r in its place
    `gated_prompt_tokens_a` (S, P, r) and `gated_prompt_tokens_b` (S, r, D); `gated_prompt_gate_logits` (G,);
    `gated_prompt_temperatures` (L - k,). What is not learned is not there.
    """
    steps = num_layers - config.insert_at
    sets, count, rank = steps if config.deep else 1, config.num_virtual_tokens, config.prompt_rank
    shapes: dict[str, tuple[int, ...]] = {TOKENS: (sets, count, hidden_size)}
    if rank is not None:
        shapes = {TOKENS_A: (sets, count, rank), TOKENS_B: (sets, rank, hidden_size)}
    num_gates = len(gated_block_indices(config, num_layers))
    if num_gates:
        shapes[GATE_LOGITS] = (num_gates,)
    if config.temperature:
        shapes[TEMPERATURES] = (steps,)
    return shapes
