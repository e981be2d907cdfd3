# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Lines on the console about what is not used: enough to notice, not so many that they hide the rest."""

from collections.abc import Sequence

from ..sharing.quoting import line

SHOWN = 5


def say(what: str, lines: Sequence[str]) -> None:
    """Print the first lines after `what`, and how many more there are."""
    for text in lines[:SHOWN]:
        print(f"{what}: {line(text)}")
    if len(lines) > SHOWN:
        print(f"{what}: {len(lines) - SHOWN} more")
