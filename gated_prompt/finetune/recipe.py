# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The methods, and the recommended recipe for few images and few epochs.

gated              the paper's: gates and temperatures
gate_only          gates, all temperatures 1
temperature_only   temperatures, prompts as in VPT-shallow
shallow            VPT-shallow: prompts alone. With --insert_at k at block k, as in the paper's first figure
deep               VPT-deep: fresh prompts at every block
zero_start         the same, read in a softmax of their own, times gates that start at 0
linear             the head alone
full               everything
lora               PEFT's LoRA on queries and values: the usual alternative
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import GatedPromptError

PROMPT_METHODS: Mapping[str, Mapping[str, bool]] = {  # the settings that each method fixes
    "gated": {},
    "gate_only": {"deep": False, "gates": True, "temperature": False},
    "temperature_only": {"deep": False, "gates": False, "temperature": True},
    "shallow": {"deep": False, "gates": False, "temperature": False},
    "deep": {"deep": True, "zero_start": False, "temperature": False},
    "zero_start": {"deep": True, "zero_start": True, "temperature": False},
}
METHODS = (*PROMPT_METHODS, "linear", "full", "lora")
PROMPT_STARTS = ("random", "sample", "mean", "max", "kmeans", "match")


@dataclass(frozen=True)
class Recommended:
    """What the measurements of docs/benchmark.md led to: defaults of gated-prompt train and of `--preset recommended`.

    AdamW without decay. The head starts as a probe fitted with the untrained prompts in place, and then learns with
    `head_share` of the prompts' rate. `batch_size` counts the images of all processes together.
    """

    num_virtual_tokens: int = 10
    gate_init: float = -3.0
    prompt_dropout: float = 0.1
    prompt_start: str = "sample"
    read_block: str = "best"
    batch_size: int = 20
    num_train_epochs: int = 10
    warmup_epochs: int = 1
    learning_rate: float = 0.003
    head_share: float = 0.1


BEST_METHOD = "zero_start"  # on the mean of the validation images of docs/benchmark.md


def recommended(method: str) -> Recommended:
    """The recommended settings of one method."""
    if method == "zero_start":
        return Recommended(prompt_dropout=0.0, prompt_start="random", learning_rate=0.01, head_share=0.03)
    return Recommended()


def entry_block(method: str, read: int) -> int:
    """The block that prompts enter: gated ones half-way to the block that is read, others block 0."""
    return (read + 1) // 2 if method == "gated" else 0


def check_method(method: str) -> None:
    """Raises:
    GatedPromptError: there is no such method. The known ones are listed.
    """
    if method not in METHODS:
        raise GatedPromptError(f"unknown method {method!r}. Choose from: {', '.join(METHODS)}.")


def check_read_block(asked: str, blocks: int | None = None) -> None:
    """Refuse a `--read_block` that is neither best nor last nor one of `blocks` blocks (None if the number is
    unknown).

    Raises:
        GatedPromptError: it is none of them.
    """
    is_block = asked.isdecimal() and (blocks is None or int(asked) < blocks)
    if asked not in ("best", "last") and not is_block:
        most = "" if blocks is None else f" to {blocks - 1}"
        raise GatedPromptError(f"--read_block is {asked!r}. Choose from: best, last, numbers from 0{most}.")
