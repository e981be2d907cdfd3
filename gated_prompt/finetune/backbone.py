# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone, measured on every block, and the block that is read."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ..architecture import find_vision_transformer
from ..errors import GatedPromptError
from ..predictor import Predictor
from ..sharing.backbone import load_backbone
from .arguments import RunArguments
from .division import Division, Parts
from .features import BlockFeatures, backbone_key, kept_features, reads_of
from .image_set import ImageSet, Pixels
from .metrics import Measure
from .probing import Study, load_study, save_study, study
from .recipe import BEST_METHOD, check_read_block


class Backbone:
    """A frozen backbone, loaded once, and its features of any images, kept in `args.cache_dir`.

    `predictor` says how images become pixels, and what is predicted. `methods` are those that were asked for, or the
    recommended one that fits. `model`: the backbone, where it is loaded already.

    Raises:
        GatedPromptError: it cannot be loaded, or is no Vision Transformer.
    """

    def __init__(
        self, args: RunArguments, predictor: Predictor, accelerator: Accelerator, model: nn.Module | None = None
    ) -> None:
        self.args, self.accelerator = args, accelerator
        self.model: Any = load_backbone(args.backbone, args.trust_remote_code) if model is None else model
        vit = find_vision_transformer(self.model)
        self.depth, self.path = len(vit.blocks), vit.tower.path
        self.predictor = replace(predictor, reads=reads_of(vit.num_prefix_tokens))
        self.methods = args.methods or [BEST_METHOD if vit.unfit_for_zero_start is None else "gated"]
        self.key = backbone_key(self.model)

    def features(self, data: ImageSet, data_key: str) -> BlockFeatures:
        """Features of every block. `data_key` is a fingerprint of the images."""
        named = json.dumps([self.key, self.predictor.preparation, data_key], sort_keys=True)
        return kept_features(
            self.model,
            Pixels(data, self.predictor),
            hashlib.sha256(named.encode()).hexdigest()[:32],
            Path(self.args.cache_dir),
            self.accelerator,
            self.args.per_device_eval_batch_size,
            self.args.dataloader_num_workers,
        )

    def study(
        self, parts: Parts, division: Division, measure: Measure, class_weights: list[float] | None, record: Path
    ) -> Study:
        """Neighbours and probes, on all processes; kept in `record`."""
        train = self.features(parts.train, parts.keys["train"])
        validation = self.features(parts.validation, parts.keys["validation"])

        def features(blocks: Sequence[int]) -> Tensor:
            return torch.cat([torch.cat((train[block], validation[block])) for block in blocks], 1)

        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            if not record.is_file():
                readable = self.readable()
                sets = self.args.read_block == "best" and len(readable) > 1
                done = study(features, self.depth, readable, sets, division, measure, class_weights, show=True)
                save_study(record, done)
            found = [load_study(record)]
        broadcast_object_list(found)
        return cast(Study, found[0])

    def readable(self) -> list[int]:
        """The blocks that may be the highest one that is read, by `--read_block`.

        Raises:
            GatedPromptError: there is no such block, or the backbone cannot end before its last one.
        """
        asked = self.args.read_block
        check_read_block(asked, self.depth)
        last = self.depth - 1
        can_end = getattr(self.model.config, "num_hidden_layers", None) == self.depth
        if asked == "best":
            return list(range(self.depth)) if can_end else [last]
        block = last if asked == "last" else int(asked)
        if block < last and not can_end:
            raise GatedPromptError(
                f"{type(self.model).__name__} cannot end after block {block}; give --read_block last"
            )
        return [block]

    def twin(self, predictor: Predictor, own_weights: bool) -> nn.Module:
        """The backbone as `predictor.load_base` would load it, with a new head.

        Frozen weights are shared by all twins. `own_weights`: these are copied, since they are to be trained.
        """
        shared = {} if own_weights else {id(one): one for one in (*self.model.parameters(), *self.model.buffers())}
        model: Any = copy.deepcopy(self.model, shared)
        depth = predictor.base.get("num_hidden_layers", self.depth)
        if depth < self.depth:
            del model.get_submodule(self.path)[depth:]
            model.config.num_hidden_layers = depth
        if own_weights:
            model.requires_grad_(True)
        return predictor.with_head(model)
