# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What to use, the probe unless something trained is better by more than chance, and all of results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calibration import confidence, fit_temperature
from .image_experiment import ImageExperiment
from .image_set import SINGLE_LABEL, ImageSet
from .metrics import DRAWS, LEVEL, SMALLER_IS_BETTER, Measure, all_measures, brief, calibration_error
from .probing import Study, place
from .report import environment
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
    "conv": "two convolutions",
}


@dataclass(frozen=True)
class Choice:
    """`run` is the best seed of the chosen method, None if the probe is kept. `sentence` says why."""

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
    value, own = _said(measure(probe, targets), measure), measure.score_to_maximize(probe, targets)
    use_probe = f"Use the linear probe on {place(blocks)}: {value} on validation"
    if not by_method:
        return Choice(None, None, f"{use_probe}. Nothing else was tried.")
    gains = {method: mean(one.score_to_maximize for one in seeds) for method, seeds in by_method.items()}
    method = max(gains, key=lambda name: gains[name])
    best = max(by_method[method], key=lambda one: one.score_to_maximize)
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
    """Return a value with the name of its measure, and a word if lower is better."""
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
        found.append(
            measure.score_to_maximize(second[rows], targets[rows])
            - measure.score_to_maximize(first[rows], targets[rows])
        )
    low, high = np.nanpercentile(found, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    return float(low), float(high)


def _points(value: float, measure: Measure) -> str:
    return f"{value:+.3g}" if measure.name in SMALLER_IS_BETTER else f"{100 * value:+.1f} points"


def assemble(
    experiment: ImageExperiment, known: Study, runs: Sequence[Run], choice: Choice, settings: Mapping[str, Any]
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
    temperature = fit_temperature(scores, scored.targets, data.problem)
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
        "temperature": temperature,
        "calibrated_error": calibration_error(confidence(scores, temperature, SINGLE_LABEL), scored.targets)
        if data.problem == SINGLE_LABEL
        else None,
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
