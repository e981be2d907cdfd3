# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What to use: the frozen backbone with its linear map, unless something trained is better on validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from torch import Tensor

from ..results import NOUNS
from .arguments import CONV
from .fit import MaskRun
from .scores import interval, mean_ious


@dataclass(frozen=True)
class MaskChoice:
    """`run` is the best seed of the chosen method, None where the frozen backbone is kept. `sentence` says why."""

    run: MaskRun | None
    sentence: str


def choose(blocks: Sequence[int], frozen: Tensor, runs: Sequence[MaskRun], pending: bool = False) -> MaskChoice:
    """The method with the best mean mIoU over its seeds, if that is above the map's.

    `frozen`: confusion matrices (N, K, K) of the map on the same images. `pending`: training is yet to come.
    """
    value, place = float(mean_ious(frozen.sum(0))), _blocks(blocks)
    if not runs:
        rest = "training goes on." if pending else "nothing was trained."
        return MaskChoice(None, f"The frozen backbone, read at {place}: {_text(value)} mIoU on validation; {rest}")
    by_method: dict[str, list[MaskRun]] = {}
    for one in runs:
        by_method.setdefault(one.record["method"], []).append(one)
    means = {method: mean(_value(one) for one in own) for method, own in by_method.items()}
    method = max(means, key=lambda name: means[name])
    noun = "two convolutions" if method == CONV else NOUNS[method]
    best = max(by_method[method], key=_value)
    if means[method] <= value or best.record["best_epoch"] == 0:
        return MaskChoice(
            None,
            f"Use the frozen backbone with a linear map, read at {place}: {_text(value)} mIoU on validation. Training "
            f"added nothing: the best of it, {noun}, has {_text(means[method])}.",
        )
    low, high = interval(frozen, best.confusions)
    doubt = "" if low > 0 else (
        f" The lead is within chance: 95 % of redrawn validation parts put it between {100 * low:+.1f} and "
        f"{100 * high:+.1f} points; the frozen backbone is simpler."
    )  # fmt: skip
    return MaskChoice(
        best,
        f"Use {noun}, read at {place}: {_text(means[method])} mIoU on validation, where the frozen backbone with a "
        f"linear map has {_text(value)}.{doubt}",
    )


def _value(run: MaskRun) -> float:
    return float(mean_ious(run.confusions.sum(0)))


def _blocks(blocks: Sequence[int]) -> str:
    shown = ", ".join(map(str, blocks))
    return f"block {shown}" if len(blocks) == 1 else f"blocks {shown}"


def _text(value: float) -> str:
    return f"{100 * value:.1f} %"
