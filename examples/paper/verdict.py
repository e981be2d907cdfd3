# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Does a measured number agree with a published one?

The paper gives no spread, and its own tables differ by up to a point where they should not (gated prompts on CUB reach
71.40 with 96 prompts and 70.56 with 100). So nothing below one point is a difference. Where the seeds here spread
more, the tolerance is twice the deviation of the published single run from the mean of these runs.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

from .averages import Cell

NOISE = 1.0  # points


def judge(cell: Cell, published: float | None, doubts: Sequence[str]) -> dict[str, Any]:
    """Published, measured, difference, tolerance (in points) and the verdict, also as texts for a table.

    The verdict is "agrees", "differs", "incomplete" or, with the first of the `doubts`, "not comparable".
    """
    values = list(cell.values.values())
    measured = mean(values) if values else None
    spread = stdev(values) * sqrt(1 + 1 / len(values)) if len(values) > 1 else 0.0
    tolerance = max(NOISE, 2 * spread)
    difference = None if measured is None or published is None else measured - published
    if difference is None or not cell.complete:
        verdict = "incomplete"
    elif doubts:
        verdict = f"not comparable: {'; '.join(doubts)}"
    else:
        verdict = "agrees" if abs(difference) <= tolerance else "differs"
    numbers = {"published": published, "measured": measured, "difference": difference, "tolerance": tolerance}
    text = ["-" if v is None else f"{v:+.2f}" if name == "difference" else f"{v:.2f}" for name, v in numbers.items()]
    return {**numbers, "verdict": verdict, "text": [*text, verdict]}
