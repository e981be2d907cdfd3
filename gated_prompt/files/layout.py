# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Names and shapes of the tensors of one adapter, in memory and in its file."""

PREFIX = "base_model.model."  # what PEFT puts before every key of a file
BANK = "gated_prompt"  # name of the parameter bank on the base model's root; must not contain PEFT's prefix
TOKENS, TOKENS_A, TOKENS_B, GATE_LOGITS, TEMPERATURES = PARAMETERS = (
    "gated_prompt_tokens",
    "gated_prompt_tokens_a",
    "gated_prompt_tokens_b",
    "gated_prompt_gate_logits",
    "gated_prompt_temperatures",
)


def parameter_shapes(
    *,
    steps: int,
    hidden_size: int,
    num_tokens: int,
    deep: bool,
    rank: int | None,
    num_gates: int,
    temperature: bool,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of one adapter, without the head.

    K = `steps`, the blocks that the prompts pass, D = `hidden_size`, P = `num_tokens`: `gated_prompt_tokens` (S, P, D)
    with S = K when deep, else 1; with a `rank` r in its place `gated_prompt_tokens_a` (S, P, r) and
    `gated_prompt_tokens_b` (S, r, D); `gated_prompt_gate_logits` (`num_gates`,); `gated_prompt_temperatures` (K,).
    What is not learned is not there.
    """
    sets = steps if deep else 1
    shapes: dict[str, tuple[int, ...]] = {TOKENS: (sets, num_tokens, hidden_size)}
    if rank is not None:
        shapes = {TOKENS_A: (sets, num_tokens, rank), TOKENS_B: (sets, rank, hidden_size)}
    if num_gates:
        shapes[GATE_LOGITS] = (num_gates,)
    if temperature:
        shapes[TEMPERATURES] = (steps,)
    return shapes
