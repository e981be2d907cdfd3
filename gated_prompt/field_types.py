# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Whether values have the types that a dataclass states: JSON and command lines bring in anything."""

import types
from typing import Any, Union, get_args, get_origin

from .files.header import shown

LARGEST = 2**20  # of any integer: a damaged number of blocks must not make lists that fill the memory
LONGEST = 1000  # entries of any list
WORDS = {
    bool: "True or False",
    int: f"an integer below {LARGEST}",
    float: "a number",
    str: "a string",
    dict: "a dict",
    type(None): "None",
}
MANY = {int: f"integers below {LARGEST}", float: "numbers", str: "strings"}


def convert(value: Any, hint: Any) -> Any:
    """`value` in the form that `hint` wants, where another stands for the same: JSON knows lists alone."""
    wanted = {get_origin(option) or option for option in _options(hint)}
    if isinstance(value, list) and tuple in wanted:
        return tuple(value)
    if isinstance(value, (tuple, range)) and list in wanted:
        return list(value)
    if isinstance(value, (set, frozenset)) and list in wanted:
        return sorted(value, key=str)
    return value


def fault_of(name: str, value: Any, hint: Any) -> str | None:
    """What is wrong with the type of a field's value, in words; None: nothing."""
    return None if _fits(value, hint) else f"{name} is {shown(value)}; {_words(hint)} is needed"


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    options = _options(hint)
    if len(options) > 1:
        return any(_fits(value, option) for option in options)
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    if kind is float:
        return isinstance(value, float) or _fits(value, int)
    if kind is list and inner:
        return isinstance(value, list) and len(value) <= LONGEST and all(_fits(item, inner[0]) for item in value)
    if kind is tuple and inner:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    return isinstance(value, kind) if isinstance(kind, type) else True


def _words(hint: Any) -> str:
    options = _options(hint)
    if len(options) > 1:  # None first, as it reads best
        return " or ".join(sorted(map(_words, options), key=lambda words: words != "None"))
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is list and inner:
        return f"a list of at most {LONGEST} {MANY.get(inner[0], 'values')}"
    if kind is tuple and inner:
        return f"{'a pair' if len(inner) == 2 else f'a tuple of {len(inner)}'} of {MANY.get(inner[0], 'values')}"
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))
