# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What to use, the frozen backbone unless something trained is better, and the content of results.json."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from torch import Tensor

from ..probing import place
from ..report import environment
from ..results import NOUNS, Choice
from ..runs import Run
from .experiment import MaskExperiment
from .probing import Frozen
from .scores import interval, mean_ious, score


def choose(blocks: Sequence[int], frozen: Tensor, runs: Sequence[Run], pending: bool = False) -> Choice:
    """The method with the best mean mIoU over its seeds, if that is above the map's.

    `frozen`: confusion matrices (N, K, K) of the map on the same images. `pending`: training is yet to come.
    """
    value, where = float(mean_ious(frozen.sum(0))), place(blocks)
    if not runs:
        rest = "Training continues." if pending else "Nothing was trained."
        return Choice(None, None, f"The frozen backbone, read at {where}: {_text(value)} mIoU on validation. {rest}")
    by_method: dict[str, list[Run]] = {}
    for one in runs:
        by_method.setdefault(one.record["method"], []).append(one)
    means = {method: mean(one.score_to_maximize for one in own) for method, own in by_method.items()}
    method = max(means, key=lambda name: means[name])
    noun = NOUNS[method]
    best = max(by_method[method], key=lambda one: one.score_to_maximize)
    if means[method] <= value or best.record["best_epoch"] == 0:
        return Choice(
            None,
            None,
            f"Use the frozen backbone with a linear map, read at {where}: {_text(value)} mIoU on validation. Training "
            f"added nothing: the best of it, {noun}, has {_text(means[method])}.",
        )
    low, high = interval(frozen, best.scores)
    doubt = "" if low > 0 else (
        f" The lead is within chance: 95 % of redrawn validation parts put it between {100 * low:+.1f} and "
        f"{100 * high:+.1f} points. The frozen backbone is simpler."
    )  # fmt: skip
    return Choice(
        method,
        best,
        f"Use {noun}, read at {where}: {_text(means[method])} mIoU on validation, where the frozen backbone with a "
        f"linear map has {_text(value)}.{doubt}",
    )


def _text(value: float) -> str:
    return f"{100 * value:.1f} %"


def assemble(
    experiment: MaskExperiment,
    frozen: Frozen,
    frozen_scores: Tensor,
    runs: Sequence[Run],
    choice: Choice,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All results on validation, and how they were obtained."""
    parts = experiment.parts
    rows = [_row("frozen, linear map", frozen_scores, None)]
    rows[0]["trained_parameters"] = frozen.all.weight.numel() + frozen.all.bias.numel()
    rows += [_row(f"{one.record['method']}, seed {one.record['seed']}", one.scores, one) for one in runs]
    for row, one in zip(rows, (None, *runs), strict=True):
        row["chosen"] = one is choice.run
    chosen = frozen_scores if choice.run is None else choice.run.scores
    found = score(chosen.sum(0))
    names = list(parts.labelled.names)
    pixels = parts.labelled.counts.sum(0).tolist()
    return {
        "sentence": choice.sentence,
        "chosen": "frozen" if choice.run is None else choice.run.record["method"],
        "problem": "segmentation",
        "measure": "mean_iou",
        "names": names,
        "data": {
            "train": {"source": parts.labelled.source, "count": len(parts.splits[0][0])},
            "validation": {"source": parts.labelled.source, "count": len(parts.splits[0][1])},
            "test": None if parts.test is None else {"source": parts.test.source, "count": len(parts.test)},
        },
        "folds": len(parts.splits),
        "blocks": list(experiment.blocks),
        "candidates": [
            {"blocks": list(one.blocks), "mean_iou": one.mean_iou, "chosen": one.blocks == frozen.all.blocks}
            for one in frozen.found
        ],
        "short_side": experiment.predictor.preparation["short_side"],
        "comparison": rows,
        "per_class": {
            name: {"iou": iou, "pixels": count} for name, iou, count in zip(names, found.iou, pixels, strict=True)
        },
        "confusion": chosen.sum(0).tolist(),
        "test": None,
        "skipped": dict(parts.labelled.skipped),
        "settings": dict(settings),
        **environment(),
    }


def measured(confusions: Tensor) -> dict[str, Any]:
    """The scores of images with these confusion matrices (N, K, K)."""
    found = score(confusions.sum(0))
    low, high = interval(confusions)
    return {
        "mean_iou": found.mean_iou,
        "pixel_accuracy": found.pixel_accuracy,
        "mean_accuracy": found.mean_accuracy,
        "interval": [low, high],
        "text": f"{100 * found.mean_iou:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
    }


def _row(name: str, confusions: Tensor, run: Run | None) -> dict[str, Any]:
    record = {} if run is None else run.record
    kept = ("method", "seed", "curve", "seconds", "trained_parameters", "best_epoch", "rates")
    return {
        "name": name,
        **measured(confusions),
        "seconds": None,
        **{key: record[key] for key in kept if key in record},
    }
