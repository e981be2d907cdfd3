# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen backbone, measured on every block, and the block that is read."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..architecture import find_vision_transformer
from ..errors import GatedPromptError
from ..predictor import Predictor
from ..sharing.backbone import load_backbone
from .arguments import RunArguments
from .block_features import reads_of
from .features import BlockFeatures, backbone_key, kept_features
from .image_set import ImageSet
from .metrics import Measure
from .pixels import Pixels
from .probing import BlockResult, best_block, load_results, probe_blocks, save_results
from .recipe import BEST_METHOD, check_read_block
from .sources import Parts


class Backbone:
    """A frozen backbone, and its features of any images, kept in `args.cache_dir`.

    `predictor` says how images become pixels, and what is predicted. `methods` are those that were asked for, or the
    recommended one that fits.

    Raises:
        GatedPromptError: it cannot be loaded, or is no Vision Transformer.
    """

    def __init__(self, args: RunArguments, predictor: Predictor, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        self.model = load_backbone(args.backbone, args.trust_remote_code)
        vit = find_vision_transformer(self.model)
        self.predictor = replace(predictor, reads=reads_of(vit.num_prefix_tokens))
        self.methods = args.methods or [BEST_METHOD if vit.unfit_for_zero_start is None else "gated"]
        self.key = backbone_key(self.model)

    def features(self, data: ImageSet, data_key: str) -> BlockFeatures:
        """Features of every block; `data_key` is a fingerprint of the images."""
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
        self, parts: Parts, measure: Measure, class_weights: list[float] | None, record: Path
    ) -> list[BlockResult]:
        """Neighbours and probes of every block, on all processes; kept in `record`."""
        train = self.features(parts.train, parts.keys["train"])
        validation = self.features(parts.validation, parts.keys["validation"])
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            if not record.is_file():
                results = probe_blocks(
                    train, validation, parts.train, parts.validation, measure, class_weights, show=True
                )
                save_results(record, results)
            found = [load_results(record)]
        broadcast_object_list(found)
        return list(found[0])

    def read_block(self, results: list[BlockResult], asked: str) -> BlockResult:
        """The block that `--read_block` means.

        Raises:
            GatedPromptError: there is no such block, or the backbone cannot end before its last one.
        """
        check_read_block(asked, len(results))
        last = len(results) - 1
        can_end = getattr(self.model.config, "num_hidden_layers", None) == len(results)
        if asked == "best":
            return best_block(results) if can_end else results[last]
        block = last if asked == "last" else int(asked)
        if block < last and not can_end:
            raise GatedPromptError(
                f"{type(self.model).__name__} cannot end after block {block}; give --read_block last"
            )
        return results[block]
