# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone of a run: which blocks are read, and the linear maps on them. Kept in a file, to resume."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...architecture import find_vision_transformer
from ...errors import GatedPromptError
from ...segmentation.predictor import MaskPredictor
from ...segmenter import TokenSegmenter
from ...sharing.backbone import load_backbone
from ...sharing.image_settings import image_settings
from ..features import backbone_key
from .arguments import MaskArguments, SegmentationArguments
from .bench import MaskBench
from .linear_map import LinearMap
from .sources import MaskParts
from .study import Candidate, best_of, candidates, fit_to_images, score_candidates, with_shares
from .token_features import kept_tokens

WINDOW = 2  # short sides. A longer image is cut into windows
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


def make_bench(
    data: MaskArguments, args: SegmentationArguments, prompts: Any, parts: MaskParts, class_weights: Tensor | None
) -> tuple[MaskBench, TokenSegmenter]:
    """The settings of the run, whose blocks are not chosen yet, and the backbone with all its blocks read.

    Raises:
        GatedPromptError: the backbone cannot be loaded, is no Vision Transformer, or lacks one of --blocks.
    """
    wanted = image_settings(args.backbone)
    names = list(parts.labelled.names)
    model = load_backbone(args.backbone)
    depth = len(find_vision_transformer(model).blocks)
    reader = TokenSegmenter(model, names, range(depth))
    patch = reader.patch_size
    side = data.image_size or wanted.side * 256 / 224  # as for classes, whose crop is 7/8 of the short side
    short = patch * max(1, round(side / patch))
    if args.blocks and not all(0 <= block < depth for block in args.blocks):
        raise GatedPromptError(f"--blocks {args.blocks}; the backbone has blocks 0 to {depth - 1}")
    colours = parts.labelled.table.colours
    predictor = MaskPredictor(
        names,
        {"mean": list(wanted.mean), "std": list(wanted.std), "short_side": short, "window": WINDOW * short},
        sorted(set(args.blocks)) or [depth - 1],
        backbone=args.backbone,
        colours=None if colours is None else [list(colour) for colour in colours],
    )
    can_end = getattr(model.config, "num_hidden_layers", None) == depth
    return MaskBench(args, prompts, predictor, depth, can_end, class_weights), reader


def study(
    bench: MaskBench, reader: TokenSegmenter, parts: MaskParts, file: Path, accelerator: Accelerator
) -> tuple[MaskBench, Frozen]:
    """Choose the blocks and fit the maps, or read what an earlier call found."""
    if not file.is_file():
        preparation = bench.predictor.preparation
        named = json.dumps(
            [backbone_key(reader.backbone), preparation, parts.keys["labelled"], "patches"], sort_keys=True
        )
        key = hashlib.sha256(named.encode()).hexdigest()[:32]
        cache = Path(bench.args.cache_dir)
        features = kept_tokens(reader, parts.labelled, bench.predictor, key, cache, accelerator)
        if accelerator.is_main_process:
            images, seed = with_shares(parts.labelled, features), bench.args.seeds[0]
            common = images, parts.splits, seed, bench.class_weights, True
            if bench.args.blocks:
                found = score_candidates([tuple(bench.predictor.blocks)], *common)
            else:
                found = score_candidates(candidates(bench.depth), *common)
                found += score_candidates(candidates(bench.depth, found), *common)
            blocks = best_of(found).blocks
            maps = {
                CHOICE: fit_to_images(blocks, images, parts.splits[0][0], seed, bench.class_weights),
                ALL: fit_to_images(blocks, images, range(len(parts.labelled)), seed, bench.class_weights),
            }
            _save(file, found, maps)
        accelerator.wait_for_everyone()
    frozen = _load(file)
    return replace(bench, predictor=replace(bench.predictor, blocks=list(frozen.all.blocks))), frozen


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
