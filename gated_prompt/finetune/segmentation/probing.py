# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone: a linear map on every block and on sets of blocks, scored on images that it did not see.

What was found is kept in a file, to resume.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ...errors import GatedPromptError
from ...segmentation.predictor import MaskPredictor
from ...segmentation.sliding_window import resize
from ...sharing.backbone import image_settings
from ..backbone import Backbone
from .arguments import MaskArguments, SegmentationArguments
from .linear_map import MOST_PATCHES, LinearMap, class_shares, fit_linear_map
from .mask_set import MaskSet
from .scores import confusion_of, mean_ious
from .sources import MaskParts, Split
from .token_features import TokenFeatures, kept_tokens

CHOICE_PATCHES = 20_000  # patches that a candidate is fitted to


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
    """Return the candidate with the best mIoU. Of equals, that with fewer and lower blocks."""
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
    """Return `count` evenly spaced blocks that end with the last. `first` is the depth of the first, as a share."""
    places = np.linspace(first * depth, depth, count)
    return tuple(sorted({max(0, round(float(place)) - 1) for place in places}))


WINDOW = 2  # short sides. Longer images are cut into windows
CHOICE, ALL = "choice", "all"  # the map fitted to the first split, and that fitted to all labelled images


@dataclass(frozen=True)
class Frozen:
    """What the frozen backbone gave.

    `found`: all candidates. `choice`: the map that was fitted to the training part of the first split. `all`: that of
    all labelled images.
    """

    found: list[Candidate]
    choice: LinearMap
    all: LinearMap

    @property
    def best(self) -> Candidate:
        return next(one for one in self.found if one.blocks == self.all.blocks)


def mask_predictor(
    data: MaskArguments, args: SegmentationArguments, backbone: Backbone, images: MaskSet
) -> MaskPredictor:
    """How images become pixels, and a head that reads every block.

    Raises:
        GatedPromptError: the backbone lacks one of --blocks, or does not cut images into squares.
    """
    depth, wanted = backbone.depth, image_settings(args.backbone)
    if args.blocks and not all(0 <= block < depth for block in args.blocks):
        raise GatedPromptError(f"--blocks {args.blocks}. The backbone has blocks 0 to {depth - 1}.")
    side = data.image_size or wanted.side * 256 / 224  # as for classes, whose crop is 7/8 of the short side
    patch = backbone.patch_size
    short = patch * max(1, round(side / patch))
    colours = images.table.colours
    return MaskPredictor(
        list(images.names),
        {"mean": list(wanted.mean), "std": list(wanted.std), "short_side": short, "window": WINDOW * short},
        list(range(depth)),
        backbone=args.backbone,
        colours=None if colours is None else [list(colour) for colour in colours],
    )


def study_backbone(
    backbone: Backbone,
    predictor: MaskPredictor,
    parts: MaskParts,
    class_weights: Tensor | None,
    args: SegmentationArguments,
    file: Path,
    accelerator: Accelerator,
) -> Frozen:
    """Choose the blocks and fit the maps, or read what an earlier call found. `predictor` reads every block."""
    if not file.is_file():
        named = json.dumps([backbone.key, predictor.preparation, parts.keys["labelled"], "patches"], sort_keys=True)
        key = hashlib.sha256(named.encode()).hexdigest()[:32]
        reader: Any = backbone.twin(predictor)
        features = kept_tokens(reader, parts.labelled, predictor, key, Path(args.cache_dir), accelerator)
        if accelerator.is_main_process:
            images, seed = with_shares(parts.labelled, features), args.seeds[0]
            common = images, parts.splits, seed, class_weights, True
            if args.blocks:
                found = score_candidates([tuple(sorted(set(args.blocks)))], *common)
            else:
                found = score_candidates(candidates(backbone.depth), *common)
                found += score_candidates(candidates(backbone.depth, found), *common)
            blocks = best_of(found).blocks
            maps = {
                CHOICE: fit_to_images(blocks, images, parts.splits[0][0], seed, class_weights),
                ALL: fit_to_images(blocks, images, range(len(parts.labelled)), seed, class_weights),
            }
            _save(file, found, maps)
        accelerator.wait_for_everyone()
    return _load(file)


def _save(file: Path, found: list[Candidate], maps: dict[str, LinearMap]) -> None:
    tensors = {f"{number}.confusions": one.confusions for number, one in enumerate(found)}
    for name, made in maps.items():
        tensors |= {f"{name}.weight": made.weight.contiguous(), f"{name}.bias": made.bias.contiguous()}
    partial = file.with_suffix(".partial")
    about = {"candidates": json.dumps([one.blocks for one in found]), "blocks": json.dumps(maps[ALL].blocks)}
    save_file(tensors, partial, about)
    os.replace(partial, file)


def _load(file: Path) -> Frozen:
    with safe_open(file, "pt") as stored:
        about = stored.metadata()
        tensors: dict[str, torch.Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    blocks = tuple(json.loads(about["blocks"]))
    found = [
        Candidate(tuple(each), tensors[f"{number}.confusions"])
        for number, each in enumerate(json.loads(about["candidates"]))
    ]
    maps = [LinearMap(blocks, tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in (CHOICE, ALL)]
    return Frozen(found, *maps)
