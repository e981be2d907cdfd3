# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Check values against the type hints of a dataclass, since JSON and command lines can contain anything."""

import types
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin

from .files.header import shown

MAX_INTEGER = 2**20  # so that a damaged number of blocks cannot create lists that fill the memory
MAX_ENTRIES = 1000  # of any list
WORDS = {
    bool: "True or False",
    int: f"an integer below {MAX_INTEGER}",
    float: "a number",
    str: "a string",
    dict: "a dict",
    type(None): "None",
}
MEANT = {  # what other methods and papers call our fields
    **dict.fromkeys(("num_prompts", "num_tokens", "n_prompts", "prompt_length", "prompt_len"), "num_virtual_tokens"),
    **dict.fromkeys(("r", "rank", "lora_alpha"), "num_virtual_tokens"),  # what sets the size of an adapter
    **dict.fromkeys(("dropout", "lora_dropout"), "prompt_dropout"),
    **dict.fromkeys(("gate_prior", "gate", "init_gate"), "gate_init"),
    **dict.fromkeys(("temp", "tau", "init_temp"), "temperature_init"),
    **dict.fromkeys(("read_block", "last_block"), "read_from"),
    **dict.fromkeys(("depth", "start_block", "first_block"), "insert_at"),
}
MANY = {int: f"integers below {MAX_INTEGER}", float: "numbers", str: "strings"}


def convert(value: Any, hint: Any) -> Any:
    """Convert between equivalent containers to match `hint`, since JSON has only lists."""
    wanted = {get_origin(option) or option for option in _options(hint)}
    if isinstance(value, list) and tuple in wanted:
        return tuple(value)
    if isinstance(value, (tuple, range)) and list in wanted:
        return list(value)
    if isinstance(value, (set, frozenset)) and list in wanted:
        return sorted(value, key=str)
    return value


def fault_of(name: str, value: Any, hint: Any) -> str | None:
    """Describe what is wrong with the type of a field's value. None if it is correct."""
    return None if _fits(value, hint) else f"{name} is {shown(value)}. Expected {_words(hint)}."


def unknown_field(positional: Collection[Any], given: Iterable[str], known: Collection[str]) -> str | None:
    """Describe an argument without a name, or a name that is not `known`, with the field that was probably meant.

    The words are those of Python's own TypeError, by which PEFT recognizes fields of a later version in a file.
    """
    if positional:
        return f"{', '.join(map(shown, positional))} without a name. Name each setting, as in num_virtual_tokens=10."
    for name in given:
        if name not in known:
            near = MEANT.get(name) or next(iter(get_close_matches(name, sorted(known), 1, 0.7)), None)
            hint = f"Did you mean {near}?" if near else f"The settings are {', '.join(sorted(known))}."
            return f"an unexpected keyword argument '{name}'. {hint}"
    return None


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    options = _options(hint)
    if len(options) > 1:
        return any(_fits(value, option) for option in options)
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INTEGER
    if kind is float:
        return isinstance(value, float) or _fits(value, int)
    if kind is list and inner:
        return isinstance(value, list) and len(value) <= MAX_ENTRIES and all(_fits(item, inner[0]) for item in value)
    if kind is tuple and inner:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    return isinstance(value, kind) if isinstance(kind, type) else True


def _words(hint: Any) -> str:
    options = _options(hint)
    if len(options) > 1:  # None first reads best
        return " or ".join(sorted(map(_words, options), key=lambda words: words != "None"))
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is list and inner:
        return f"a list of at most {MAX_ENTRIES} {MANY.get(inner[0], 'values')}"
    if kind is tuple and inner:
        return f"{'a pair' if len(inner) == 2 else f'a tuple of {len(inner)}'} of {MANY.get(inner[0], 'values')}"
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))
