# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""report.html: its charts, samples of each class, the most confident mistakes, and the page around them."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from ..inspect.readouts import find_adapter, prompts_are_active
from .image_set import LABEL_NOUNS, MULTI_LABEL, SINGLE_LABEL, ImageSet
from .metrics import SMALLER_IS_BETTER
from .page import thumbnail, write_page
from .report import read_out
from .svg import Line, line_chart, percent, plain

BESIDE = ("balanced_accuracy", "macro_f1", "calibration_error", "r2")  # further columns of the comparison
FLAT = 1e-6  # values that moved less than this from their start have learned nothing


def draw_all(results: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return every chart of the report by name, empty without content. `model` is the trained one, or None.

    Without a kept training there are neither curves nor gates: a page that says to use the probe shows the probe.
    """
    kept = [row for row in results["comparison"] if row["chosen"] and "curve" in row]
    method = [row for row in results["comparison"] if kept and row.get("method") == kept[0]["method"]]
    return {
        "by_block": by_block(results, kept),
        "learned": learned(model) if kept and model is not None and prompts_are_active(model) else [],
        "curves": curves(method, results["measure"]) if method else [],
    }


def by_block(results: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]) -> Markup:
    """Nearest neighbours and probe over the blocks, and what was trained on the one that is read."""
    name, blocks = results["measure"], results["blocks"]
    places = [one["block"] for one in blocks]
    lines = [
        Line("linear probe", places, [one["linear_probe"] for one in blocks]),
        Line("nearest neighbours", places, [one["nearest_neighbours"] for one in blocks]),
        *(Line(row["name"], [results["block"]], [row["measures"][name]]) for row in kept),
    ]
    return line_chart(name.replace("_", " "), "block", lines, _text(name), read=results["read_blocks"])


def learned(model: Any) -> list[Markup]:
    """Draw gates and temperatures by block, except those that have not moved."""
    adapter, found = find_adapter(model, None)[1], read_out(model)
    if adapter.config.zero_start:
        heads = [sum(map(abs, row)) / len(row) for row in found["head_gates"]]
        gates, start = Line("learned", list(adapter.blocks), heads), 0.0
    else:
        gates = Line("learned", list(adapter.gate_rows), found["gates"])
        start = 1 / (1 + math.exp(-adapter.config.gate_init))
    warm = Line("learned", list(adapter.blocks), found["temperatures"])
    return [
        line_chart(title, "block", [line], start=begin)
        for title, line, begin in (("gate", gates, start), ("temperature", warm, adapter.config.temperature_init))
        if any(abs(value - begin) > FLAT for value in line.ys)
    ]


def curves(rows: Sequence[Mapping[str, Any]], name: str) -> list[Markup]:
    """Draw measure and loss on validation over the epochs. Epoch 0 is the start."""

    def lines(key: str) -> list[Line]:
        points = [(row["name"], row["curve"]) for row in rows]
        return [Line(run, [one["epoch"] for one in curve], [one[key] for one in curve]) for run, curve in points]

    drawn = ((name, _text(name)), ("loss", plain))
    return [
        line_chart(f"{key.replace('_', ' ')} on validation", "epoch", lines(key), text)
        for key, text in drawn
        if any(line.points() for line in lines(key))
    ]


def _text(measure: str) -> Any:
    return plain if measure in SMALLER_IS_BETTER else percent


MOST_CLASSES, EACH = 24, 3


@dataclass(frozen=True)
class Sample:
    """Some thumbnails of a class, and how many images it has."""

    name: str
    count: int
    pictures: list[str]


def samples(data: ImageSet) -> list[Sample]:
    """Return the first classes or labels with their first, middle and last image. Numbers have none."""
    if data.problem not in (SINGLE_LABEL, MULTI_LABEL):
        return []
    found = []
    for label, name in enumerate(data.names[:MOST_CLASSES]):
        has = data.targets == label if data.problem == SINGLE_LABEL else data.targets[:, label] > 0.5
        members = has.nonzero()[:, 0].tolist()
        chosen = sorted({round(index * (len(members) - 1) / (EACH - 1)) for index in range(EACH)}) if members else []
        found.append(Sample(name, len(members), [thumbnail(data.pictures[members[i]].decode()) for i in chosen]))
    return found


MOST = 12


@dataclass(frozen=True)
class Mistake:
    """A thumbnail with the true and the predicted class."""

    name: str
    picture: str
    truth: str
    said: str


def worst_mistakes(data: ImageSet, scores: Tensor) -> list[Mistake]:
    """Return wrong answers, the most confident first. For numbers, the largest errors."""
    if data.problem == SINGLE_LABEL:
        sure, said = scores.softmax(-1).max(-1)
        amount = torch.where(said == data.targets, -1.0, sure)
        texts = [
            (data.names[int(true)], f"{data.names[int(index)]} ({percent(float(share))})")
            for true, index, share in zip(data.targets, said, sure, strict=True)
        ]
    elif data.problem == MULTI_LABEL:
        shares = scores.sigmoid()
        gaps = (shares - data.targets).abs()
        amount, where = gaps.max(-1)
        amount = torch.where(amount < 0.5, -1.0, amount)
        texts = [
            (
                f"{'is' if data.targets[row, column] else 'is not'} {data.names[int(column)]}",
                percent(float(shares[row, column])),
            )
            for row, column in enumerate(where)
        ]
    else:
        amount = (scores - data.targets).abs()[:, 0]
        texts = [
            (f"{float(true[0]):.4g}", f"{float(score[0]):.4g}")
            for true, score in zip(data.targets, scores, strict=True)
        ]
    order = [int(index) for index in amount.argsort(descending=True, stable=True)[:MOST] if amount[index] >= 0]
    return [Mistake(data.pictures[i].name, thumbnail(data.pictures[i].decode()), *texts[i]) for i in order]


@dataclass(frozen=True)
class Pictures:
    """Return the images of the report: samples, mistakes, and labels that out-of-fold probes contradict.

    `out_of_fold`: the mistakes come from fits that have not seen their image, so `suspects` would repeat them.
    """

    samples: list[Sample]
    mistakes: list[Mistake]
    suspects: list[Mistake]
    out_of_fold: bool


def write_report(
    file: Path,
    results: Mapping[str, Any],
    drawings: Mapping[str, Any],
    pictures: Pictures,
    use: Path,
) -> None:
    """Write the page atomically. `results` is the content of results.json, `use` the folder that it says to use."""
    measured = {name for row in results["comparison"] for name in row["measures"]} - {results["measure"]}
    backbone = results["settings"]["backbone"]
    write_page(
        "report.html",
        file,
        results,
        expected=results["test"] or results["estimate"],
        say=plain if results["measure"] in SMALLER_IS_BETTER else percent,
        outputs=LABEL_NOUNS[results["problem"]],
        label=results["measure"].replace("_", " "),
        beside=[name for name in BESIDE if name in measured],
        not_kept=results["complete"] and results["chosen"] == "linear_probe" and len(results["comparison"]) > 1,
        drawings=drawings,
        pictures=pictures,
        use=shlex.quote(str(use.resolve())),
        runs=shlex.quote(str(use.resolve().parents[1])),
        backbone_path=shlex.quote(str(Path(backbone).resolve()) if Path(backbone).exists() else backbone),
    )
