# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone: nearest neighbours of every block, and linear probes of blocks and sets of blocks."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..predictor import PROBLEM_TYPES, Predictor
from ..starts.linear_probe import STRENGTHS, fit_path
from .backbone import Backbone
from .division import Division, Parts
from .features import BlockFeatures, kept_features
from .image_set import MULTI_LABEL, SINGLE_LABEL, ImageSet, Pixels
from .metrics import Measure

NEIGHBOURS = 20
CLOSENESS = 0.07  # temperature of the neighbours' weights, as in DINO's evaluation
KEPT = 1e-6  # tolerance of the probe that is kept
EVERY = 3  # one of the sets is every third block
Features = Callable[[Sequence[int]], Tensor]  # blocks -> (N, F) of all labelled images


@dataclass(frozen=True)
class Candidate:
    """Blocks, the L2 penalty that is best for them, and scores (H, K) of images that the fit has not seen."""

    blocks: tuple[int, ...]
    l2: float
    scores: Tensor
    score_to_maximize: float
    value: float


@dataclass(frozen=True)
class Study:
    """What is known of the frozen backbone.

    `neighbours`: the measure of each block's. `candidates`: single blocks from the first to the last, then sets.
    `chosen`: the one that is read. `weight` (K, F), `bias` (K,): its probe, fitted to `Division.final`.
    """

    neighbours: list[float]
    candidates: list[Candidate]
    chosen: Candidate
    weight: Tensor
    bias: Tensor

    @property
    def singles(self) -> list[Candidate]:
        return [one for one in self.candidates if len(one.blocks) == 1]


def study(
    features: Features,
    depth: int,
    readable: Sequence[int],
    sets: bool,
    division: Division,
    measure: Measure,
    class_weights: list[float] | None,
    show: bool,
) -> Study:
    """Probe every block, then with `sets` the best with its neighbours and every third. Choose among `readable`.

    Of equals the one with fewer blocks wins, then the lower one.
    """
    found, near = [], []
    for block in tqdm(range(depth), "probe every block", leave=False, disable=not show):
        x = features([block])
        found.append(fit_candidate((block,), x, division, measure, class_weights))
        near.append(measure(neighbour_scores(x, division), division.scored.targets))
    if sets:
        best = _best(one for one in found if one.blocks[0] in readable).blocks[0]
        first = max(0, min(best - 1, depth - 3))
        wanted = [tuple(range(first, min(first + 3, depth))), tuple(range(EVERY - 1, depth, EVERY))]
        for blocks in dict.fromkeys(one for one in wanted if len(one) > 1):
            found.append(fit_candidate(blocks, features(blocks), division, measure, class_weights))
    chosen = _best(one for one in found if one.blocks[-1] in readable)
    return Study(near, found, chosen, *fit_kept(chosen, features(chosen.blocks), division, class_weights))


def fit_candidate(
    blocks: tuple[int, ...], x: Tensor, division: Division, measure: Measure, class_weights: list[float] | None
) -> Candidate:
    """The strength that is best for these blocks. Of equals the stronger penalty. x: (N, F)."""
    data, targets = division.images, division.scored.targets
    weights = None if class_weights is None else torch.tensor(class_weights)
    fits = fit_path(
        x, data.targets, len(data.names), PROBLEM_TYPES[data.problem], used=division.used, class_weights=weights
    )
    found = []
    for l2, (weight, bias) in zip(STRENGTHS, fits, strict=True):
        scores = division.scores(x, weight, bias)
        value = measure(scores, targets)
        found.append(Candidate(blocks, l2, scores, measure.score_to_maximize(scores, targets), value))
    return _best(found)


def _best(found: Iterable[Candidate]) -> Candidate:
    """Return the best. Of equals, the first."""
    return max(found, key=lambda one: one.score_to_maximize)


def fit_kept(
    chosen: Candidate, x: Tensor, division: Division, class_weights: list[float] | None
) -> tuple[Tensor, Tensor]:
    """Weight (K, F) and bias (K,) of what was chosen, fitted to `Division.final`."""
    data, rows = division.images, division.final
    weights = None if class_weights is None else torch.tensor(class_weights)
    problem = PROBLEM_TYPES[data.problem]
    (fit,) = fit_path(
        x[rows], data.targets[rows], len(data.names), problem, [chosen.l2], class_weights=weights, tolerance=KEPT
    )
    return fit[0][0].contiguous(), fit[1][0].contiguous()


def neighbour_scores(x: Tensor, division: Division) -> Tensor:
    """Mean label of the nearest images of other folds by cosine, weighted by closeness, as scores (H, K)."""
    data, held, fold = division.images, division.held, division.fold
    targets = F.one_hot(data.targets, len(data.names)) if data.problem == SINGLE_LABEL else data.targets
    unit = F.normalize(x.float(), dim=1)
    cosine = (unit[held] @ unit.T).masked_fill(fold[held][:, None] == fold, -torch.inf)
    near, places = cosine.topk(min(NEIGHBOURS, len(fold)), dim=1)
    weights = ((near - near[:, :1]) / CLOSENESS).exp()
    found = (weights[..., None] * targets[places].float()).sum(1) / weights.sum(1, keepdim=True)
    return torch.logit(found.clamp(1e-6, 1 - 1e-6)) if data.problem == MULTI_LABEL else found


def save_study(file: Path, done: Study) -> None:
    """Write the study atomically."""
    tensors = {f"{index}.scores": one.scores.contiguous() for index, one in enumerate(done.candidates)}
    facts = [[one.blocks, one.l2, one.score_to_maximize, one.value] for one in done.candidates]
    text = json.dumps([done.neighbours, facts, done.candidates.index(done.chosen)])
    partial = file.with_suffix(".partial")
    save_file(tensors | {"weight": done.weight, "bias": done.bias}, partial, {"study": text})
    os.replace(partial, file)


def load_study(file: Path) -> Study:
    """Read what `save_study` wrote."""
    with safe_open(file, "pt") as stored:
        near, facts, chosen = json.loads(stored.metadata()["study"])
        found = [
            Candidate(tuple(blocks), l2, stored.get_tensor(f"{index}.scores"), gain, value)
            for index, (blocks, l2, gain, value) in enumerate(facts)
        ]
        return Study(near, found, found[chosen], stored.get_tensor("weight"), stored.get_tensor("bias"))


def place(blocks: Sequence[int]) -> str:
    """ "block 5", or "blocks 4, 5 and 6"."""
    *first, last = map(str, blocks)
    return f"blocks {', '.join(first)} and {last}" if first else f"block {last}"


def image_features(
    backbone: Backbone, predictor: Predictor, images: ImageSet, key: str, args: Any, accelerator: Accelerator
) -> BlockFeatures:
    """Features of every block, kept in `args.cache_dir`. `key` is a fingerprint of the images."""
    named = json.dumps([backbone.key, predictor.preparation, key], sort_keys=True)
    return kept_features(
        backbone.model,
        Pixels(images, predictor),
        hashlib.sha256(named.encode()).hexdigest()[:32],
        Path(args.cache_dir),
        accelerator,
        args.per_device_eval_batch_size,
        args.dataloader_num_workers,
    )


def study_backbone(
    backbone: Backbone,
    predictor: Predictor,
    parts: Parts,
    division: Division,
    measure: Measure,
    class_weights: list[float] | None,
    args: Any,
    record: Path,
    accelerator: Accelerator,
) -> Study:
    """Neighbours and probes, on all processes, kept in `record`."""
    train, validation = (
        image_features(backbone, predictor, images, parts.keys[part], args, accelerator)
        for part, images in (("train", parts.train), ("validation", parts.validation))
    )

    def features(blocks: Sequence[int]) -> Tensor:
        return torch.cat([torch.cat((train[block], validation[block])) for block in blocks], 1)

    found: list[Any] = [None]
    if accelerator.is_main_process:
        if not record.is_file():
            readable = backbone.readable(args.read_block)
            sets = args.read_block == "best" and len(readable) > 1
            done = study(features, backbone.depth, readable, sets, division, measure, class_weights, show=True)
            save_study(record, done)
        found = [load_study(record)]
    broadcast_object_list(found)
    return cast(Study, found[0])
