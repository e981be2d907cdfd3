# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What to use: the probe, unless something trained is better on validation by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from .metrics import DRAWS, LEVEL, SMALLER_IS_BETTER, Measure
from .probing import place
from .runs import Run

NOUNS = {
    "gated": "gated prompts",
    "gate_only": "prompts with gates",
    "temperature_only": "prompts with temperatures",
    "shallow": "prompts at one block",
    "deep": "prompts at every block",
    "zero_start": "zero-start prompts",
    "linear": "a head trained by gradient descent",
    "full": "fine-tuning of the whole backbone",
    "lora": "LoRA",
}


@dataclass(frozen=True)
class Choice:
    """`run` is the best seed of the chosen method, None where the probe is kept; `sentence` says why."""

    method: str | None
    run: Run | None
    sentence: str


def choose(blocks: Sequence[int], probe: Tensor, runs: Sequence[Run], targets: Tensor, measure: Measure) -> Choice:
    """The method with the best mean over its seeds, if its lead over the probe of the same blocks is beyond chance.

    `probe`: its scores (N, K) on the validation part, by a fit that has not seen it.
    """
    by_method: dict[str, list[Run]] = {}
    for one in runs:
        by_method.setdefault(one.record["method"], []).append(one)
    value, own = _said(measure(probe, targets), measure), measure.gain(probe, targets)
    use_probe = f"Use the linear probe on {place(blocks)}: {value} on validation"
    if not by_method:
        return Choice(None, None, f"{use_probe}; nothing else was tried.")
    gains = {method: mean(one.gain for one in seeds) for method, seeds in by_method.items()}
    method = max(gains, key=lambda name: gains[name])
    best = max(by_method[method], key=lambda one: one.gain)
    found = measure.text(mean(measure(one.scores, targets) for one in by_method[method]))
    if gains[method] <= own:
        verb = "as good as" if gains[method] == own else "better than"
        return Choice(
            None,
            None,
            f"{use_probe}, {verb} {NOUNS[method]} ({found}), and nothing in the backbone has to be trained.",
        )
    low, high = difference(probe, best.scores, targets, measure)
    if low <= 0:
        return Choice(
            None,
            None,
            f"{use_probe}. {NOUNS[method][0].upper()}{NOUNS[method][1:]} reach {found}, a lead within chance: 95 % "
            f"of redrawn validation parts put it between {_points(low, measure)} and {_points(high, measure)}.",
        )
    start = (
        "" if best.record["best_epoch"] else " Its best epoch is the start: training added nothing to the fitted head."
    )
    found = _said(mean(measure(one.scores, targets) for one in by_method[method]), measure)
    return Choice(
        method,
        best,
        f"Use {NOUNS[method]} on {place(blocks)}: {found} on validation, where the linear probe there "
        f"has {measure.text(measure(probe, targets))}.{start}",
    )


def _said(value: float, measure: Measure) -> str:
    """A value with the name of its measure, and a word where lower is better."""
    name = measure.name.replace("_", " ")
    lower = " (lower is better)" if measure.name in SMALLER_IS_BETTER else ""
    text = measure.text(value)
    return f"{text} {name}{lower}" if text.endswith("%") else f"{name} {text}{lower}"


def difference(first: Tensor, second: Tensor, targets: Tensor, measure: Measure) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of the second's gain over the first's, on the same resampled images."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        rows = torch.from_numpy(rng.integers(0, len(targets), len(targets)))
        found.append(measure.gain(second[rows], targets[rows]) - measure.gain(first[rows], targets[rows]))
    low, high = np.nanpercentile(found, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return float(low), float(high)


def _points(value: float, measure: Measure) -> str:
    return f"{value:+.3g}" if measure.name in SMALLER_IS_BETTER else f"{100 * value:+.1f} points"
