# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Training on label maps: crops, loss, confusion matrices of the validation images, and how heads start."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...segmentation.predictor import MaskPredictor, segmenter_of
from ...training.best_epoch import Validation
from ..experiment import Experiment, KeptTokens, LearningRates
from ..recipe import PROMPT_METHODS
from .arguments import CONV
from .crops import Crops, crop_size
from .linear_map import MOST_PATCHES, LinearMap, class_shares, fit_linear_map, mask_loss
from .mask_set import MaskSet
from .scores import confusion_of, score
from .sources import MaskParts
from .token_features import grids_of, read_image

RATES = {"lora": (1e-3, 1e-3), "full": (2e-5, 1e-3), CONV: (1e-3, 1e-3)}  # of what is trained, and of the head
PROMPT_RATES = (1e-2, 1e-3)


@dataclass(frozen=True)
class MaskExperiment(Experiment):
    """Images with label maps.

    Attributes:
        parts: the images.
        choice: the linear map of the frozen backbone that was fitted to the training part. `final`: to all images.
        class_weights: (K,), or None.
    """

    parts: MaskParts
    choice: LinearMap
    final: LinearMap
    class_weights: Tensor | None

    @property
    def train_images(self) -> MaskSet:
        return self.parts.train

    @property
    def all_images(self) -> MaskSet:
        return self.parts.labelled

    @property
    def refits(self) -> bool:
        return bool(self.args.refit)

    def pixels(self, images: MaskSet, seed: int | None) -> Crops:
        preparation, patch = self.predictor.preparation, self.backbone.patch_size
        grids = grids_of(images.sizes, preparation["short_side"], patch) * patch
        crop = crop_size([(height, width) for height, width in grids.tolist()], preparation["window"])
        return Crops(images, self.predictor, crop, seed)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return mask_loss(logits, targets, self.args.loss == "ce_dice", self.class_weights)

    def validation(self, kept: KeptTokens | None) -> Callable[[nn.Module], Validation]:
        def validate(model: nn.Module) -> Validation:
            alone = self.accelerator.unwrap_model(
                model
            )  # unwrapped, since processes score different numbers of windows
            confusions = self.confusions(alone, self.parts.validation)
            found = score(confusions.sum(0))
            measures = {"mean_iou": found.mean_iou, "pixel_accuracy": found.pixel_accuracy}
            return Validation(confusions, found.mean_iou, measures)

        return validate

    def initialize(self, model: nn.Module, method: str, seed: int, images: MaskSet) -> None:
        """Let the head start as the map that was fitted to the frozen backbone.

        Prompts that change what the head reads from the start get a map of their own.
        """
        if method == CONV:
            return
        fitted = self.final if len(images) == len(self.all_images) else self.choice
        if method in PROMPT_METHODS and method != "zero_start":
            fitted = self.map_with(model, images, seed)
        set_head(segmenter_of(model), fitted)

    def rates(self, method: str) -> LearningRates:
        main, head = PROMPT_RATES if method in PROMPT_METHODS else RATES[method]
        main = self.args.learning_rate or main
        return LearningRates(main, main, self.args.head_learning_rate or head)

    def trained_as(self, method: str) -> str:
        return "linear" if method == CONV else method

    def prompts_of(self, method: str) -> Any:
        return replace(super().prompts_of(method), pooling="none")

    def predictor_of(self, method: str | None) -> MaskPredictor:
        made: MaskPredictor = super().predictor_of(method)
        return replace(made, head="conv" if method == CONV else "linear")

    def frozen(self, fitted: LinearMap) -> nn.Module:
        """The frozen backbone with this map as its head."""
        model = self.twin(None)
        set_head(model, fitted)
        return model.to(self.accelerator.device)

    def map_with(self, model: nn.Module, images: MaskSet, seed: int) -> LinearMap:
        """A linear map on what the head sees with the prompts in place."""
        base = segmenter_of(model)
        model.eval()
        device = next(model.parameters()).device
        each = max(1, MOST_PATCHES // len(images))
        draw = torch.Generator().manual_seed(seed)
        features, shares = [], []
        for index in range(len(images)):
            pixels = self.predictor.pixels(images.image(index), base.patch_size)
            grid = pixels.shape[1] // base.patch_size, pixels.shape[2] // base.patch_size
            rows = torch.randperm(grid[0] * grid[1], generator=draw)[:each]
            tokens = read_image(base, pixels.to(device)).transpose(0, 1).flatten(1).float().cpu()
            features.append(tokens[rows])
            shares.append(class_shares(images.labels(index), grid, len(images.names)).flatten(0, 1)[rows])
        return fit_linear_map(self.blocks, torch.cat(features), torch.cat(shares), seed, self.class_weights)

    def confusions(
        self, model: nn.Module, images: MaskSet, look: Callable[[int, Tensor], None] | None = None
    ) -> Tensor:
        """Confusion matrices int64 (N, K, K) of all images, which the processes of a run share among them.

        `look` is called with the index of each image of this process and its predicted label map.
        """
        training, accelerator = model.training, self.accelerator
        model.eval()
        count = len(images.names)
        found = torch.zeros(len(images), count, count, dtype=torch.int64, device=accelerator.device)
        for index in range(accelerator.process_index, len(images), accelerator.num_processes):
            predicted = torch.from_numpy(self.predictor.label_map(model, images.image(index)))
            found[index] = confusion_of(predicted, images.labels(index), count).to(found.device)
            if look is not None:
                look(index, predicted)
        model.train(training)
        total: Tensor = accelerator.reduce(found, "sum")
        return total.cpu()


def set_head(model: nn.Module, fitted: LinearMap) -> None:
    """Make a segmenter's linear head this map, and under an adapter the head that is trained as well."""
    head: Any = segmenter_of(model).classifier
    for part in head.modules():
        if isinstance(part, nn.Linear):
            with torch.no_grad():
                part.weight.copy_(fitted.weight)
                part.bias.copy_(fitted.bias)
