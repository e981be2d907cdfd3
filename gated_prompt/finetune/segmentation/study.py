# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone: a linear map on every block and on sets of blocks, scored on images that it did not see."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...segmentation.sliding_window import resize
from .linear_map import MOST_PATCHES, LinearMap, fit_linear_map
from .mask_set import MaskSet
from .patch_labels import class_shares
from .scores import confusion_of, mean_ious
from .sources import Split
from .token_features import TokenFeatures

CHOICE_PATCHES = 20_000  # that a candidate is fitted to


@dataclass(frozen=True)
class Labelled:
    """Images with their features and the shares (M, K) of the classes in their patches."""

    data: MaskSet
    features: TokenFeatures
    shares: Tensor


@dataclass(frozen=True)
class Candidate:
    """A set of blocks, with the confusion matrix (N, K, K) of each image that was scored."""

    blocks: tuple[int, ...]
    confusions: Tensor

    @property
    def mean_iou(self) -> float:
        return float(mean_ious(self.confusions.sum(0)))


def with_shares(data: MaskSet, features: TokenFeatures) -> Labelled:
    """Compute the shares of all patches."""
    parts = []
    for index in range(len(data)):
        grid = int(features.grids[index][0]), int(features.grids[index][1])
        parts.append(class_shares(data.labels(index), grid, len(data.names)).flatten(0, 1))
    return Labelled(data, features, torch.cat(parts))


def candidates(depth: int, singles: Sequence[Candidate] = ()) -> list[tuple[int, ...]]:
    """The blocks alone. Once these are scored, sets: the best with its neighbours, and blocks evenly apart."""
    if not singles:
        return [(block,) for block in range(depth)]
    best = best_of(singles).blocks[0]
    sets = [tuple(block for block in (best - 1, best, best + 1) if 0 <= block < depth)]
    sets += [_apart(depth, 1 / 2, 3), _apart(depth, 1 / 4, 4), _apart(depth, 1 / 3, 5), _apart(depth, 1 / 3, 5)[:-1]]
    return [blocks for blocks in dict.fromkeys(sets) if len(blocks) > 1]


def best_of(found: Sequence[Candidate]) -> Candidate:
    """The best mIoU; of equals fewer and lower blocks."""
    return max(found, key=lambda one: (one.mean_iou, -len(one.blocks), [-block for block in one.blocks]))


def score_candidates(
    blocks: Sequence[tuple[int, ...]],
    images: Labelled,
    splits: Sequence[Split],
    seed: int,
    class_weights: Tensor | None,
    show: bool,
) -> list[Candidate]:
    """Fit each candidate to `CHOICE_PATCHES` patches of one part of each split, and score it on the other."""
    scored = [index for _, rest in splits for index in rest]
    labels = {index: images.data.labels(index) for index in scored}
    found = []
    for one in tqdm(blocks, "linear maps", leave=False, disable=not show):
        confusions = []
        for fit_to, rest in splits:
            made = fit_to_images(one, images, fit_to, seed, class_weights, CHOICE_PATCHES)
            confusions += [confusion_map(made, images, index, labels[index]) for index in rest]
        found.append(Candidate(one, torch.stack(confusions)))
    return found


def fit_to_images(
    blocks: tuple[int, ...],
    train: Labelled,
    images: Sequence[int],
    seed: int,
    class_weights: Tensor | None,
    most: int = MOST_PATCHES,
) -> LinearMap:
    """The map of these blocks that fits these images, or `most` random patches of them."""
    offsets = train.features.offsets
    places = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in images])
    if len(places) > most:
        chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:most]
        places = places[chosen.sort().values]
    return fit_linear_map(blocks, train.features.rows(blocks, places), train.shares[places], seed, class_weights)


def confusion_map(made: LinearMap, scored: Labelled, index: int, labels: Tensor) -> Tensor:
    """The confusion matrix (K, K) of one image, the logits upsampled to the size of its label map."""
    logits = made(scored.features.image(made.blocks, index))
    predicted = resize(logits, (labels.shape[0], labels.shape[1])).argmax(0)
    return confusion_of(predicted, labels, len(scored.data.names))


def _apart(depth: int, first: float, count: int) -> tuple[int, ...]:
    """`count` blocks evenly apart, the last one among them. `first`: the depth of the first, as a share of all."""
    places = np.linspace(first * depth, depth, count)
    return tuple(sorted({max(0, round(float(place)) - 1) for place in places}))
