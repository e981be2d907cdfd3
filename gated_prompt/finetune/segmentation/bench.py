# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What all runs of one command share, and how the model of a method is made."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from peft import PeftModel
from torch import Tensor, nn

from ...segmentation.predictor import MaskPredictor
from ...segmenter import TokenSegmenter
from ...training.loop import make_accelerator
from ..methods import adapt, prompt_config
from ..recipe import PROMPT_METHODS, entry_block
from .arguments import CONV, SegmentationArguments
from .linear_map import MOST_PATCHES, LinearMap, class_shares, fit_linear_map
from .mask_set import MaskSet
from .token_features import read_image

RATES = {"lora": (1e-3, 1e-3), "full": (2e-5, 1e-3), CONV: (1e-3, 1e-3)}  # of what is trained, and of the head
PROMPT_RATES = (1e-2, 1e-3)


@dataclass(frozen=True)
class MaskBench:
    """One command's settings.

    Attributes:
        args: of the run.
        prompts: of the prompts.
        predictor: the whole backbone, what the head reads, and how images become pixels.
        depth: blocks of the backbone.
        can_end: whether the backbone can be loaded with fewer blocks.
        class_weights: (K,), or None.
    """

    args: SegmentationArguments
    prompts: Any
    predictor: MaskPredictor
    depth: int
    can_end: bool
    class_weights: Tensor | None

    @property
    def last(self) -> int:
        """The highest block that is read."""
        return max(self.predictor.blocks)

    def predictor_of(self, method: str | None) -> MaskPredictor:
        """What is written beside the result of a method, or of the linear map (None).

        Prompts record themselves where the blocks end, so that adapters with different blocks share one backbone.
        """
        made = replace(self.predictor, head="conv" if method == CONV else "linear")
        if method in PROMPT_METHODS or self.last == self.depth - 1 or not self.can_end:
            return made
        return replace(made, base={"num_hidden_layers": self.last + 1})

    def start(self, method: str, seed: int, output: Path) -> tuple[Accelerator, nn.Module]:
        """A seeded accelerator, and the model of a method before any image was seen."""
        # Fine-tuning in full: backbones have parameters that the head does not need, such as mask tokens.
        unused = DistributedDataParallelKwargs(find_unused_parameters=method == "full")
        accelerator = make_accelerator(seed, self.args.report_to, output, unused)
        base = self.predictor_of(method).load_base()
        config = None
        if method in PROMPT_METHODS:
            entry = self.prompts.insert_at
            settings = replace(
                self.prompts,
                read_from=self.last if self.last < self.depth - 1 else None,
                insert_at=entry_block(method, self.last) if entry is None else entry,
                pooling="none",
            )
            config = prompt_config(method, settings, mae_backbone=False)
        model = adapt(base, "linear" if method == CONV else method, config, self.args.lora_r)
        return accelerator, model.to(accelerator.device)

    def begin(self, model: nn.Module, method: str, fitted: LinearMap, data: MaskSet, seed: int) -> None:
        """Let the head start as the map that was fitted to the frozen backbone.

        Prompts that change what the head reads from the start get a map of their own.
        """
        if method == CONV:
            return
        if method in PROMPT_METHODS and method != "zero_start":
            fitted = self.refit_with(model, data, seed)
        head: Any = segmenter_of(model).classifier
        for part in head.modules():
            if isinstance(part, nn.Linear):
                with torch.no_grad():
                    part.weight.copy_(fitted.weight)
                    part.bias.copy_(fitted.bias)

    def refit_with(self, model: nn.Module, data: MaskSet, seed: int) -> LinearMap:
        """A linear map on what the head sees with the prompts in place."""
        base = segmenter_of(model)
        model.eval()
        device = next(model.parameters()).device
        each = max(1, MOST_PATCHES // len(data))
        draw = torch.Generator().manual_seed(seed)
        features, shares = [], []
        for index in range(len(data)):
            pixels = self.predictor.pixels(data.image(index), base.patch_size)
            grid = pixels.shape[1] // base.patch_size, pixels.shape[2] // base.patch_size
            rows = torch.randperm(grid[0] * grid[1], generator=draw)[:each]
            tokens = read_image(base, pixels.to(device)).transpose(0, 1).flatten(1).float().cpu()
            features.append(tokens[rows])
            shares.append(class_shares(data.labels(index), grid, len(data.names)).flatten(0, 1)[rows])
        return fit_linear_map(
            tuple(self.predictor.blocks), torch.cat(features), torch.cat(shares), seed, self.class_weights
        )

    def rates(self, method: str) -> tuple[float, float]:
        """Peak learning rates of what a method trains and of its head."""
        main, head = PROMPT_RATES if method in PROMPT_METHODS else RATES[method]
        return self.args.learning_rate or main, self.args.head_learning_rate or head


def segmenter_of(model: nn.Module) -> TokenSegmenter:
    """The segmenter below an adapter."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base
