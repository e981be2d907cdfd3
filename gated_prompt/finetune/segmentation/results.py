# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The content of results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..report import environment
from .bench import MaskBench
from .choice import MaskChoice
from .fit import MaskRun
from .frozen import Frozen
from .scores import interval, score
from .sources import MaskParts


def assemble(
    parts: MaskParts,
    bench: MaskBench,
    frozen: Frozen,
    frozen_scores: Tensor,
    runs: Sequence[MaskRun],
    choice: MaskChoice,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All results on validation, and how they were obtained."""
    rows = [_row("frozen, linear map", frozen_scores, bench.predictor, None)]
    rows[0]["trained_parameters"] = frozen.all.weight.numel() + frozen.all.bias.numel()
    rows += [
        _row(f"{one.record['method']}, seed {one.record['seed']}", one.confusions, bench.predictor, one)
        for one in runs
    ]
    for row, one in zip(rows, (None, *runs), strict=True):
        row["chosen"] = one is choice.run
    chosen = frozen_scores if choice.run is None else choice.run.confusions
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
        "blocks": list(bench.predictor.blocks),
        "candidates": [
            {"blocks": list(one.blocks), "mean_iou": one.mean_iou, "chosen": one.blocks == frozen.all.blocks}
            for one in frozen.found
        ],
        "short_side": bench.predictor.preparation["short_side"],
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


def _row(name: str, confusions: Tensor, predictor: Any, run: MaskRun | None) -> dict[str, Any]:
    record = {} if run is None else run.record
    kept = ("method", "seed", "curve", "seconds", "trained_parameters", "best_epoch", "rates")
    return {
        "name": name,
        **measured(confusions),
        "seconds": None,
        **{key: record[key] for key in kept if key in record},
    }
