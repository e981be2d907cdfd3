# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the frozen backbone says about the data themselves: labels that look wrong, and images in two parts.

A label is suspect where a probe that has not seen the image is sure of another class: images are sorted by the
probability of their label less that of the best other class, the normalised margin of confident learning (Northcutt
et al., 2021, arXiv 1911.00068).
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import confidence, fit_temperature
from .image_set import SINGLE_LABEL, ImageSet

SUSPECTS = 20
NEIGHBOURS = 3
ALIKE = 0.25  # two images nearer than this share of the usual nearest distance are near-duplicates
SUSPECT = ("image", "label", "suggested", "label_probability", "suggested_probability", "neighbours")
TWICE = ("image", "labelled_image", "label", "labelled_label", "relative_distance")
ROWS = 500  # images compared with all others at a time
Row = dict[str, Any]


def label_suspects(scores: Tensor, held: Sequence[int], images: ImageSet, features: Tensor) -> list[Row]:
    """The labels that look most like errors, at most `SUSPECTS`, the worst first.

    Args:
        scores: logits (H, K) of some of the images, by a fit that has not seen them.
        held: indices of these images.
        images: with classes, N of them.
        features: (N, F) of all images.

    Returns:
        Rows with image, label, suggested, label_probability, suggested_probability, and neighbours: the nearest
        images with their labels.
    """
    own = images.targets[list(held)]
    shares = confidence(scores.double(), fit_temperature(scores, own, SINGLE_LABEL), SINGLE_LABEL)
    given = shares.gather(1, own[:, None])[:, 0]
    other, suggested = shares.scatter(1, own[:, None], -1).max(1)
    order = [i for i in (given - other).argsort(stable=True).tolist() if other[i] > given[i]][:SUSPECTS]
    unit = _standard(features, features)
    rows = []
    for place in order:
        index = held[place]
        cosine = unit @ unit[index]
        cosine[index] = -torch.inf
        near = cosine.topk(min(NEIGHBOURS, len(unit) - 1)).indices.tolist()
        rows.append(
            {
                "image": images.pictures[index].name,
                "label": images.label(index),
                "suggested": images.names[int(suggested[place])],
                "label_probability": round(float(given[place]), 4),
                "suggested_probability": round(float(other[place]), 4),
                "neighbours": [{"image": images.pictures[i].name, "label": images.label(i)} for i in near],
            }
        )
    return rows


def near_duplicates(labelled: ImageSet, features: Tensor, test: ImageSet, test_features: Tensor) -> list[Row]:
    """Test images that are almost one of the labelled images, the closest first.

    Two images are alike where their distance is below `ALIKE` of the median distance of a labelled image to its
    nearest other one: so a data set of similar images needs closer pairs. Features: (N, F) and (M, F).

    Returns:
        Rows with image (of the test part), labelled_image, both labels, and relative_distance.
    """
    if len(labelled) < 2:
        return []
    bank, asked = _standard(features, features), _standard(test_features, features)
    usual = float(_nearest(bank, bank, itself=True)[0].median())
    distances, places = _nearest(asked, bank)
    rows = []
    for index in distances.argsort(stable=True).tolist():
        share = float(distances[index]) / usual if usual > 0 else 0.0
        if share < ALIKE and (usual > 0 or distances[index] == 0):
            other = int(places[index])
            rows.append(
                {
                    "image": test.pictures[index].name,
                    "labelled_image": labelled.pictures[other].name,
                    "label": test.label(index),
                    "labelled_label": labelled.label(other),
                    "relative_distance": round(share, 4),
                }
            )
    return rows


def _standard(features: Tensor, of: Tensor) -> Tensor:
    """Unit vectors of features (M, F), standardised by the mean and spread of others (N, F)."""
    scale = of.float().std(0, correction=0)
    return F.normalize((features.float() - of.float().mean(0)) / scale.clamp(min=1e-6), dim=1)


def _nearest(asked: Tensor, bank: Tensor, itself: bool = False) -> tuple[Tensor, Tensor]:
    """Return the distance (M,) to the nearest row of the bank, and the index of that row.

    With `itself`, `asked` is the bank, and no row counts as its own neighbour.
    """
    distances, places = [], []
    for rows in torch.arange(len(asked)).split(ROWS):
        found = torch.cdist(asked[rows], bank)
        if itself:
            found[torch.arange(len(rows)), rows] = torch.inf
        near = found.min(1)
        distances.append(near.values)
        places.append(near.indices)
    return torch.cat(distances), torch.cat(places)


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV atomically, with its header even if there are no rows. Each neighbour gets two columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    beside = [f"neighbour_{i}{end}" for i in range(1, NEIGHBOURS + 1) for end in ("", "_label")]
    has_neighbours = "neighbours" in columns
    plain = [name for name in columns if name != "neighbours"]
    writer.writerow([*plain, *(beside if has_neighbours else ())])
    for row in rows:
        near = [one[key] for one in row.get("neighbours", ()) for key in ("image", "label")]
        writer.writerow([*(row[name] for name in plain), *near])
    partial = file.with_suffix(".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    os.replace(partial, file)
