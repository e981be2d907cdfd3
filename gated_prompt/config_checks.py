# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Find settings that are wrong for any base model."""

import math
from typing import TYPE_CHECKING

from .files.layout import BANK

if TYPE_CHECKING:
    from .config import GatedPromptConfig

POOLINGS = ("prompts", "patches", "prompts_and_patches")


def setting_faults(config: "GatedPromptConfig") -> list[str]:
    """Return one message for each setting that is wrong for any base model."""
    faults = []
    if config.task_type is not None:
        faults.append(f"task_type is {config.task_type!r}; use None, since PEFT's task types are for language models")
    if config.num_virtual_tokens < 1:
        faults.append(f"num_virtual_tokens is {config.num_virtual_tokens}; expected at least 1")
    if config.prompt_rank is not None and not 1 <= config.prompt_rank <= config.num_virtual_tokens:
        faults.append(
            f"prompt_rank is {config.prompt_rank}; it must lie between 1 and num_virtual_tokens, "
            f"{config.num_virtual_tokens}; None gives prompts of full rank"
        )
    names = config.modules_to_save or []
    if {"", BANK} & set(names) or len(set(names)) < len(names):
        faults.append(f"modules_to_save is {names}; name each module of the base once")
    if config.insert_at < 0:
        faults.append(f"insert_at is {config.insert_at}; blocks are counted from 0")
    if config.read_from is not None and config.read_from < max(0, config.insert_at):
        faults.append(f"read_from is {config.read_from}; it must be at least insert_at={config.insert_at}")
    if not 0 <= config.prompt_dropout < 1:
        faults.append(f"prompt_dropout is {config.prompt_dropout}; it must lie in [0, 1)")
    if config.pooling is not None and config.pooling not in POOLINGS:
        faults.append(f"pooling is {config.pooling!r}; expected None, {', '.join(map(repr, POOLINGS))}")
    if config.num_prefix_tokens is not None and config.num_prefix_tokens < 0:
        faults.append(f"num_prefix_tokens is {config.num_prefix_tokens}; it cannot be negative")
    return faults + _zero_start_faults(config) + _gate_faults(config) + _temperature_faults(config)


def _zero_start_faults(config: "GatedPromptConfig") -> list[str]:
    if not config.zero_start:
        return []
    faults = []
    if not config.deep:
        faults.append("zero_start=True needs deep=True: each block reads prompts of its own")
    if config.pooling in ("prompts", "prompts_and_patches"):
        faults.append(
            f"zero_start=True contradicts pooling={config.pooling!r}: these prompts never become output tokens; use "
            "pooling='patches' or None"
        )
    return faults


def _gate_faults(config: "GatedPromptConfig") -> list[str]:
    faults = []
    if not math.isfinite(config.gate_init):
        faults.append(f"gate_init is {config.gate_init}; expected a finite logit (-20 closes a gate, 20 opens it)")
    if config.hard_gates and (config.deep or not config.gates):
        faults.append("hard_gates=True needs gates, but deep=True and gates=False have none")
    if config.gated_blocks is None:
        return faults
    if config.deep:
        faults.append("deep=True has no gates, which contradicts gated_blocks; leave one of the two out")
    elif not config.gates:
        faults.append("gates=False contradicts gated_blocks; leave one of the two out")
    elif not config.gated_blocks:
        faults.append("gated_blocks is empty; use gates=False for prompts without gates")
    if sorted(set(config.gated_blocks)) != config.gated_blocks:
        faults.append(f"gated_blocks is {config.gated_blocks}; list each block once, in ascending order")
    below = [b for b in config.gated_blocks if b < config.insert_at]
    if below:
        faults.append(f"gated_blocks {below} lie below insert_at={config.insert_at}: these blocks have no prompts")
    above = [b for b in config.gated_blocks if config.read_from is not None and b > config.read_from]
    if above:
        faults.append(f"gated_blocks {above} lie above read_from={config.read_from}: these blocks do not run")
    return faults


def _temperature_faults(config: "GatedPromptConfig") -> list[str]:
    faults = []
    low, high = config.temperature_range
    if not (0 < low < high and math.isfinite(high)):
        faults.append(f"temperature_range is {config.temperature_range}; expected 0 < low < high")
    elif config.temperature and not low <= config.temperature_init <= high:
        faults.append(f"temperature_init is {config.temperature_init}, outside temperature_range ({low}, {high})")
    if not (config.temperature_init > 0 and math.isfinite(config.temperature_init)):
        faults.append(f"temperature_init is {config.temperature_init}; expected a positive, finite number")
    return faults
