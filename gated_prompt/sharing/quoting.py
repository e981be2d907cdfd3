# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Values of others, put into a model card: each quoted for its place, so that it can neither end nor change it.

A downloaded adapter names its base, a base names its classes. Whoever wrote them must not write into your card.
"""

import re

# Signs that start or end something in Markdown or HTML. An underscore inside a word does neither.
SPECIAL = re.compile(r"[\\`*\[\]<>&~$]|(?<!\w)_|_(?!\w)")


def python(value: str) -> str:
    """A literal of Python, on one line."""
    return f'"{value}"' if re.fullmatch(r"[\w ./:-]*", value, re.ASCII) else repr(value)


def line(value: object) -> str:
    """Text on one line that can be stored as UTF-8: for YAML, whose writer does the rest, and for comments."""
    text = " ".join(str(value).split())
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def markdown(value: object) -> str:
    """Text that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\g<0>", line(value))


def plain(text: str) -> str:
    """What `markdown` was made of."""
    return re.sub(r"\\([^\w\s])|\\(_)", lambda found: found[1] or found[2], text)


def code_span(value: object) -> str:
    """Text in Markdown's fixed width."""
    text = line(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"
