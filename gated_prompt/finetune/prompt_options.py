# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The options of prompts: every field of `GatedPromptConfig` that a user can choose, with the same defaults."""

from dataclasses import dataclass, field
from typing import Any


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PromptArguments:
    """Settings of the prompts. They are repeated here because the config's own class needs PEFT and torch."""

    _argument_group_name = "prompts"

    num_virtual_tokens: int = _help("P, the number of prompt tokens (per block when deep)", 50)
    insert_at: int = _help(
        "index of the first block with prompts in its input; train and --preset recommended choose it by the block "
        "that is read",
        0,
    )
    read_from: int | None = _help(
        "index of the block whose output the head reads; later blocks do not run; default: the last", None
    )
    deep: bool = _help("VPT-deep: fresh prompts at each block from --insert_at on, without gates", False)
    zero_start: bool = _help(
        "with deep: the other tokens read the prompts in a softmax of their own, times tanh(a), one a for each head, "
        "0 at the start: the adapted model begins as the base",
        False,
    )
    gates: bool = _help("learn one gate per gated block (paper, Section 4)", True)
    gate_init: float = _help("initial gate logit; the paper's table value v means logit -v", -5.0)
    gated_blocks: list[int] | None = field(
        default=None,
        metadata={"help": "indices of the gated blocks; default: all with prompts but the last"},
    )
    hard_gates: bool = _help(
        "gates are sampled as 0 or 1 in training, and 1 if logit > 0 in eval mode (paper, Table 4)", False
    )
    temperature: bool = _help("learn one attention temperature per block from --insert_at on", True)
    temperature_init: float = _help("initial temperature; fixed with --temperature false", 1.0)
    temperature_range: list[float] = field(
        default_factory=lambda: [0.01, 10.0],
        metadata={"help": "low and high: learned temperatures are clamped to this range"},
    )
    prompt_dropout: float = _help(
        "dropout on the inserted prompts in training; train and --preset recommended: 0 for zero_start", 0.1
    )
    prompt_rank: int | None = _help("deprecated; r: the prompts are a product of (P, r) and (r, D)", None)
    pooling: str = field(
        default="auto",
        metadata={
            "help": "mean that replaces token 0 before the final norm; auto: prompts_and_patches for MAE backbones, "
            "else none",
            "choices": ("auto", "none", "prompts", "patches", "prompts_and_patches"),
        },
    )
    eval_backbone: bool = _help("keep the modules inside the frozen blocks in eval mode while training", True)
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules to train and save with the prompts; default: the detected head"}
    )
    target_modules: str | None = _help("dotted path of the list of blocks, if detection is ambiguous", None)
    num_prefix_tokens: int | None = _help("number of tokens before the patches; default: detected", None)
