# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Which ideas earn their place: differences between rows that differ in one thing, and their means over the tasks."""

from collections.abc import Callable
from statistics import mean

from study_results import LAST, TASKS, Found, best_block, finals, head_scores, markdown, of_kind, the

Scores = Callable[[str, str, Found], list[float]]  # task, "val" or "test", cells -> percent by seed


def _probe(last: bool) -> Scores:
    def scores(task: str, what: str, found: Found) -> list[float]:
        if not of_kind(found, task, "probe"):
            return []
        return [100 * the(found, task, "probe")[what][LAST if last else best_block(task, found)]]

    return scores


def _head(kind: str, head: str) -> Scores:
    def scores(task: str, what: str, found: Found) -> list[float]:
        known = of_kind(found, task, "probe")
        return head_scores(task, best_block(task, found), (kind, head), what, found) if known else []

    return scores


def _row(row: str) -> Scores:
    return lambda task, what, found: finals(task, row, found, what)


PROBE = _probe(last=False)
PAIRS: dict[str, tuple[Scores, Scores]] = {
    "read after the chosen block, not the last (probe)": (PROBE, _probe(last=True)),
    "standardised features under a trained linear head": (_head("standardised", "linear"), _head("heads", "linear")),
    "attentive head, against the linear head": (_head("heads", "attentive"), _head("heads", "linear")),
    "attentive head, against the probe": (_head("heads", "attentive"), PROBE),
    'gated, "sample" start, against a random one': (_row("gated_start_sample_best"), _row("gated_start_best")),
    "gates with their own rate": (_row("gated_start_rate_best"), _row("gated_start_sample_best")),
    "prompts from half-way on, against block 0": (
        _row("gated_start_sample_half_best"),
        _row("gated_start_sample_best"),
    ),
    "one prompt from half-way on, against ten": (
        _row("gated_start_sample_half_1_best"),
        _row("gated_start_sample_half_best"),
    ),
    "three prompts from half-way on, against ten": (
        _row("gated_start_sample_half_3_best"),
        _row("gated_start_sample_half_best"),
    ),
    'VPT-deep, against gated, both with "sample" start': (
        _row("deep_start_sample_best"),
        _row("gated_start_sample_best"),
    ),
    'VPT-deep, propagated start against "sample"': (
        _row("deep_start_propagated_best"),
        _row("deep_start_sample_best"),
    ),
    'zero start, against VPT-deep with "sample" start': (_row("zero_start_best"), _row("deep_start_sample_best")),
    'zero start, against "sample" start': (_row("zero_start_best"), _row("gated_start_sample_best")),
    'zero start, "sample" start against a random one': (_row("zero_start_sample_best"), _row("zero_start_best")),
    "zero start, from half-way on, against block 0": (_row("zero_start_half_best"), _row("zero_start_best")),
    "zero start, 100 prompts in each block, against 10": (_row("zero_start_100_best"), _row("zero_start_best")),
    "zero-start gates with their own rate": (_row("zero_start_rate_best"), _row("zero_start_best")),
    'gated, "sample" start, against the probe': (_row("gated_start_sample_best"), PROBE),
    "zero start, against the probe": (_row("zero_start_best"), PROBE),
    "LoRA, rank 8, against the probe": (_row("lora8_start_best"), PROBE),
    'gated, "sample" start, against LoRA': (_row("gated_start_sample_best"), _row("lora8_start_best")),
    "zero start, against LoRA": (_row("zero_start_best"), _row("lora8_start_best")),
}


def differences(found: Found) -> str:
    """Validation / test differences in points where both rows have run, and their means over these tasks."""
    rows = [["", *TASKS, "mean"]]
    for name, (one, other) in PAIRS.items():
        cells, gains = [], []
        for task in TASKS:
            pairs = {what: (one(task, what, found), other(task, what, found)) for what in ("val", "test")}
            if all(values for pair in pairs.values() for values in pair):
                gains.append([mean(first) - mean(second) for first, second in pairs.values()])
                cells.append("{:+.1f} / {:+.1f}".format(*gains[-1]))
            else:
                cells.append("not run")
        if gains:
            rows.append([name, *cells, "{:+.1f} / {:+.1f}".format(*map(mean, zip(*gains, strict=True)))])
    return markdown(rows)
