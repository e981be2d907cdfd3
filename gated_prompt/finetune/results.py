# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The content of results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .experiment import Bench
from .image_set import ImageSet
from .metrics import Measure, all_measures, brief
from .model_selection import Choice
from .probing import BlockResult
from .reporting import environment
from .runs import Run
from .sources import Parts


def assemble(
    parts: Parts,
    bench: Bench,
    blocks: Sequence[BlockResult],
    read: BlockResult,
    runs: Sequence[Run],
    choice: Choice,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All results on the validation part, and how they were obtained."""
    measure, data = bench.measure, parts.validation
    rows = [_row("linear probe", read.probe.scores, data, measure, read.probe.weight.numel() + len(data.names), None)]
    rows += [
        _row(
            f"{one.record['method']}, seed {one.record['seed']}",
            one.scores,
            data,
            measure,
            one.record["trained_parameters"],
            one.record["seconds"],
        )
        | {"method": one.record["method"], "seed": one.record["seed"], "curve": one.record["curve"]}
        for one in runs
    ]
    for row, one in zip(rows, (None, *runs), strict=True):
        row["chosen"] = one is choice.run
    chosen = all_measures(
        data.problem, (choice.run.scores if choice.run else read.probe.scores), data.targets, measure, data.names
    )
    return {
        "sentence": choice.sentence,
        "chosen": choice.method or "linear_probe",
        "measure": measure.name,
        "problem": data.problem,
        "names": list(data.names),
        "data": {
            part: None if pictures is None else {"source": pictures.source, "count": len(pictures)}
            for part, pictures in (("train", parts.train), ("validation", data), ("test", parts.test))
        },
        "block": read.block,
        "blocks": [
            {
                "block": one.block,
                "nearest_neighbours": one.neighbours,
                "linear_probe": one.probe_value,
                "l2": one.probe.l2,
                "neighbours_text": measure.text(one.neighbours),
                "probe_text": measure.text(one.probe_value),
            }
            for one in blocks
        ],
        "comparison": rows,
        "rates": {one.record["method"]: one.record["rates"] for one in runs},
        "per_class": chosen.get("per_class"),
        "confusion": chosen.get("confusion"),
        "learned": choice.run.record["learned"] if choice.run else {},
        "test": None,
        "skipped": dict(parts.left_out),
        "contradictions": list(parts.contradictions),
        "settings": dict(settings),
        **environment(),
    }


def test_result(data: ImageSet, scores: Tensor, measure: Measure) -> dict[str, Any]:
    """Measures of the test part."""
    found = all_measures(data.problem, scores, data.targets, measure, data.names)
    return {**brief(found), "interval": found["interval"], "text": _text(found, measure)}


def _row(
    name: str, scores: Tensor, data: ImageSet, measure: Measure, trained: int, seconds: float | None
) -> dict[str, Any]:
    found = all_measures(data.problem, scores, data.targets, measure, data.names)
    return {
        "name": name,
        "text": _text(found, measure),
        "measures": brief(found),
        "interval": found["interval"],
        "trained_parameters": trained,
        "seconds": seconds,
    }


def _text(found: Mapping[str, Any], measure: Measure) -> str:
    low, high = (measure.text(end) for end in found["interval"])
    return f"{measure.text(found[measure.name])} ({low} to {high})"
