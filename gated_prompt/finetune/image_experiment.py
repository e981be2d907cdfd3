# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Training on whole images with classes, labels or numbers: their pixels, loss and validation, and how heads start."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..errors import GatedPromptError
from ..predictor import PROBLEM_TYPES, Predictor
from ..starts.head import initialize_head
from ..starts.initialize import initialize_prompts
from ..training.best_epoch import Validation
from ..training.token_cache import cache_prefix
from .division import Division, Parts
from .experiment import Experiment, KeptTokens, LearningRates
from .image_set import MULTI_LABEL, SINGLE_LABEL, ImageSet, Pixels
from .metrics import Measure
from .recipe import PROMPT_METHODS, recommended


@dataclass(frozen=True)
class ImageExperiment(Experiment):
    """Whole images with classes, labels or numbers.

    Attributes:
        parts: the images.
        division: of the labelled images.
        measure: what decides.
        l2: strength of the penalty with which heads start, that of the best probe.
        class_weights: (K,), or None.
    """

    parts: Parts
    division: Division
    measure: Measure
    l2: float
    class_weights: list[float] | None

    @property
    def train_images(self) -> ImageSet:
        return self.parts.train

    @property
    def all_images(self) -> ImageSet:
        return self.division.images

    @property
    def refits(self) -> bool:
        return self.division.refit

    def pixels(self, images: ImageSet, seed: int | None = None) -> Pixels:
        return Pixels(images, self.predictor, seed)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._loss(logits, targets, self.args.label_smoothing)

    def validation(self, kept: KeptTokens | None) -> Callable[[nn.Module], Validation]:
        targets = self.parts.validation.targets
        loader = self.loader(self.pixels(self.parts.validation) if kept is None else kept.validation)

        def validate(model: nn.Module) -> Validation:
            scores = score(model, loader, self.accelerator)
            loss = float(self._loss(scores, targets))
            measures = {
                "loss": loss if loss < float("inf") else float("inf"),  # nan too
                self.measure.name: self.measure(scores, targets),
            }
            return Validation(scores, self.measure.score_to_maximize(scores, targets), measures)

        return validate

    def initialize(self, model: nn.Module, method: str, seed: int, images: ImageSet) -> None:
        """Make the prompts from tokens of the images, and fit the head to what it sees with them in place."""
        count, own = self.accelerator.num_processes, self.accelerator.process_index
        mine = Subset(self.pixels(images), range(own, len(images), count))
        loader = DataLoader(mine, self.args.per_device_eval_batch_size, num_workers=self.args.dataloader_num_workers)
        prompt_start = self.args.prompt_start or recommended(method).prompt_start
        if method in PROMPT_METHODS and prompt_start != "random":
            initialize_prompts(model, loader, method=prompt_start, seed=seed)
        problem = PROBLEM_TYPES[self.parts.train.problem]
        initialize_head(model, loader, problem_type=problem, l2=self.l2, class_weights=self.class_weights)

    def rates(self, method: str) -> LearningRates | None:
        if self.args.learning_rate == "auto":
            return None
        rate = float(self.args.learning_rate)
        return LearningRates(rate, rate, recommended(method).head_share * rate)

    def predictor_of(self, method: str | None) -> Predictor:
        made: Predictor = super().predictor_of(method)
        return replace(made, blocks=list(self.blocks) if len(self.blocks) > 1 else None)

    def keep_tokens(self, method: str, folder: Path) -> KeptTokens | None:
        """Write what reaches the first block with prompts to `folder`, once per image.

        None if blocks have to run in every epoch: they have prompts or weights to train, the head reads them,
        images are augmented, or training cannot start at a later block, which is printed.
        """
        first = self.prompts_of(method).insert_at
        if self.args.augment or method not in PROMPT_METHODS or not first or self.blocks[0] < first:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        model = self.model(method, self.args.seeds[0], folder)
        try:
            train, validation = (
                cache_prefix(model, self.pixels(images), folder / f"{name}.safetensors", self.accelerator)
                for name, images in (("train", self.parts.train), ("validation", self.parts.validation))
            )
            return KeptTokens(train, validation)
        except GatedPromptError as error:
            self.accelerator.print(f"the blocks below the prompts run in every epoch: {error}")
            return None

    def loader(self, data: Dataset[Any]) -> Any:
        """Batches to score, shared by all processes."""
        args = self.args
        loader = DataLoader(data, args.per_device_eval_batch_size, num_workers=args.dataloader_num_workers)
        return self.accelerator.prepare(loader)

    def _loss(self, scores: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean loss of logits or numbers (N, K)."""
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, device=scores.device)
        problem = self.parts.train.problem
        if problem == SINGLE_LABEL:
            return F.cross_entropy(scores, targets, weights, label_smoothing=smoothing)
        if problem == MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(scores, targets, pos_weight=weights)
        return F.mse_loss(scores, targets)


@torch.inference_mode()
def score(model: nn.Module, loader: DataLoader[Any], accelerator: Accelerator) -> Tensor:
    """Logits or numbers (N, K), float32 on the CPU of every process, in the order of the images.

    It shows no progress, since it usually runs inside a training progress bar.
    """
    model.eval()
    rows = []
    for pixels, _ in loader:
        rows.append(accelerator.gather_for_metrics(model(pixels).logits).float().cpu())
    return torch.cat(rows).clone()
