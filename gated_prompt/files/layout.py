# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Names and shapes of the tensors of one adapter, in memory and in its file."""

PREFIX = "base_model.model."  # PEFT adds it to every key of a file
BANK = "gated_prompt"  # name of the parameter bank on the base model's root. Must not contain PEFT's prefix
TOKENS, TOKENS_A, TOKENS_B, GATE_LOGITS, TEMPERATURES, HEAD_GATES = PARAMETERS = (
    "gated_prompt_tokens",
    "gated_prompt_tokens_a",
    "gated_prompt_tokens_b",
    "gated_prompt_gate_logits",
    "gated_prompt_temperatures",
    "gated_prompt_head_gates",
)


def parameter_shapes(
    *,
    num_blocks: int,
    hidden_size: int,
    num_tokens: int,
    deep: bool,
    rank: int | None,
    num_gates: int,
    temperature: bool,
    num_heads: int | None,
) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters of one adapter, without the head.

    With K = `num_blocks` (those with prompts), D = `hidden_size`, P = `num_tokens`: `gated_prompt_tokens` (S, P, D),
    S = K when deep, else 1. With a `rank` r instead `gated_prompt_tokens_a` (S, P, r) and `gated_prompt_tokens_b`
    (S, r, D). `gated_prompt_gate_logits` (`num_gates`,). `gated_prompt_temperatures` (K,).
    `gated_prompt_head_gates` (K, `num_heads`). Those that the adapter does not learn are left out.
    """
    sets = num_blocks if deep else 1
    shapes: dict[str, tuple[int, ...]] = {TOKENS: (sets, num_tokens, hidden_size)}
    if rank is not None:
        shapes = {TOKENS_A: (sets, num_tokens, rank), TOKENS_B: (sets, rank, hidden_size)}
    if num_gates:
        shapes[GATE_LOGITS] = (num_gates,)
    if temperature:
        shapes[TEMPERATURES] = (num_blocks,)
    if num_heads is not None:
        shapes[HEAD_GATES] = (num_blocks, num_heads)
    return shapes
