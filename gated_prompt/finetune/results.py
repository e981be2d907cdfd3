# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The content of results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .experiment import Experiment
from .image_set import ImageSet
from .metrics import Measure, all_measures, brief
from .model_selection import Choice
from .probing import Study
from .reporting import environment
from .runs import Run


def assemble(
    experiment: Experiment, known: Study, runs: Sequence[Run], choice: Choice, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All results on images that were not trained on, and how they were obtained."""
    parts, division, measure = experiment.parts, experiment.division, experiment.measure
    data, probe = parts.validation, known.chosen.scores[division.validation]
    rows = [_row("linear probe", probe, data, measure, known.weight.numel() + len(data.names), None)]
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
    scored, scores = (division.scored, known.chosen.scores) if choice.run is None else (data, choice.run.scores)
    chosen = all_measures(data.problem, scores, scored.targets, measure, data.names)
    folds = choice.run is None and division.is_cross_validation
    final = len(division.final)
    where = f"out of fold, on {len(scored)} images" if folds else f"on {len(scored)} validation images"
    again = f" The weights that are kept were then fitted to all {final} labelled images." if division.refit else ""
    return {
        "sentence": f"{choice.sentence} Estimate: {_text(chosen, measure)} {where}.{again}",
        "complete": True,
        "chosen": choice.method or "linear_probe",
        "measure": measure.name,
        "problem": data.problem,
        "names": list(data.names),
        "data": {
            part: None if pictures is None else {"source": pictures.source, "count": len(pictures)}
            for part, pictures in (("train", parts.train), ("validation", data), ("test", parts.test))
        },
        "estimate": {**brief(chosen), "interval": chosen["interval"], "images": len(scored), "out_of_fold": folds},
        "trained_on": final,
        "block": experiment.read,
        "read_blocks": list(experiment.blocks),
        "blocks": [
            {
                "block": one.blocks[0],
                "nearest_neighbours": near,
                "linear_probe": one.value,
                "l2": one.l2,
                "neighbours_text": measure.text(near),
                "probe_text": measure.text(one.value),
            }
            for one, near in zip(known.singles, known.neighbours, strict=True)
        ],
        "block_sets": [
            {
                "blocks": list(one.blocks),
                "linear_probe": one.value,
                "l2": one.l2,
                "probe_text": measure.text(one.value),
            }
            for one in known.candidates
            if len(one.blocks) > 1
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
