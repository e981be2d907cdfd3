# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Whether the fields of a `GatedPromptConfig` have the right types: JSON and command lines bring in anything."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .files.config_file import FINGERPRINT

if TYPE_CHECKING:
    from .config import GatedPromptConfig

LARGEST = 2**20  # of any integer: a damaged number of blocks must not make lists that fill the memory


def type_faults(config: "GatedPromptConfig") -> list[str]:
    """One line for each field of a wrong type; values are checked in `config.py`."""
    faults: list[str] = []

    def expect(name: str, ok: bool, wanted: str) -> None:
        if not ok:
            faults.append(f"{name} is {getattr(config, name)!r}; {wanted} is needed")

    for name in ("num_virtual_tokens", "insert_at"):
        expect(name, _is_int(getattr(config, name)), f"an integer below {LARGEST}")
    for name in ("prompt_rank", "num_prefix_tokens", "num_layers", "hidden_size", "detected_prefix_tokens"):
        value = getattr(config, name)
        expect(name, value is None or _is_int(value), f"None or an integer below {LARGEST}")
    for name in ("deep", "gates", "hard_gates", "temperature", "eval_backbone", "inference_mode"):
        expect(name, isinstance(getattr(config, name), bool), "True or False")
    for name in ("gate_init", "gate_tolerance", "temperature_init", "prompt_dropout"):
        expect(name, _is_number(getattr(config, name)), "a number")
    for name in ("pooling", "target_modules", "base_model_name_or_path", "revision", "peft_version", FINGERPRINT):
        expect(name, getattr(config, name) is None or isinstance(getattr(config, name), str), "None or a string")
    expect("gated_blocks", _is_list_of(config.gated_blocks, _is_int), "None or a list of block indices")
    expect(
        "modules_to_save",
        _is_list_of(config.modules_to_save, lambda v: isinstance(v, str)),
        "None or a list of module names",
    )
    pair = config.temperature_range
    expect(
        "temperature_range",
        isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_number, pair)),
        "a pair of numbers (low, high)",
    )
    return faults


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_int(value)


def _is_list_of(value: object, check: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(check, value)))
