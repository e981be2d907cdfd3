# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What all runs of one command share, whatever is predicted, and how the model of a method is made.

`image_experiment` is about whole images, `segmentation.experiment` about label maps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..training.best_epoch import Validation
from ..training.checkpoints import trained_tensors
from ..training.loop import new_training
from ..training.token_cache import CachedPrefix
from .backbone import Backbone
from .methods import adapt, prompt_config
from .recipe import PROMPT_METHODS, entry_block, recommended


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates: of the prompts (LoRA, backbone), of the gates and temperatures, and of the head."""

    main: float
    gates: float
    head: float


@dataclass(frozen=True)
class KeptTokens:
    """Tokens of the training and validation images at the prompts' first block, and their labels."""

    train: CachedPrefix
    validation: CachedPrefix


@dataclass(frozen=True)
class Experiment(ABC):
    """One command's backbone and settings, and what differs between images and label maps as methods.

    Attributes:
        args: of the run.
        prompts: settings of the prompts.
        accelerator: of all trainings.
        backbone: loaded once. The models of all runs are twins of it.
        predictor: what is written beside a result that reads the whole backbone.
        blocks: after which the head reads, from 0, ascending.
    """

    args: Any
    prompts: Any
    accelerator: Accelerator
    backbone: Backbone
    predictor: Any
    blocks: tuple[int, ...]

    @property
    @abstractmethod
    def train_images(self) -> Any:
        """The images that choices are trained on."""

    @property
    @abstractmethod
    def all_images(self) -> Any:
        """All labelled images."""

    @property
    @abstractmethod
    def refits(self) -> bool:
        """Whether what was chosen is trained once more, on all labelled images."""

    @abstractmethod
    def pixels(self, images: Any, seed: int | None) -> Any:
        """A data set of pixels and labels, with `set_epoch`, augmented where there is a `seed`."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch while training."""

    @abstractmethod
    def validation(self, kept: KeptTokens | None) -> Callable[[nn.Module], Validation]:
        """What scores a model on the validation images, on all processes."""

    @abstractmethod
    def initialize(self, model: nn.Module, method: str, seed: int, images: Any) -> None:
        """Initialize what depends on images: prompts made of tokens, and a fitted head."""

    @abstractmethod
    def rates(self, method: str) -> LearningRates | None:
        """The learning rates that were given or belong to a method. None if they are searched for."""

    def keep_tokens(self, method: str, folder: Path) -> KeptTokens | None:
        """What reaches the first block with prompts, once per image, in `folder`. None if nothing is kept."""
        return None

    def model(self, method: str, seed: int, output: Path) -> nn.Module:
        """Return the model of a method before it has seen an image. Everything is seeded."""
        # Under full fine-tuning, backbones have parameters that no head needs, such as mask tokens.
        new_training(self.accelerator, seed, output, unused_parameters=method == "full")
        # The head reads the patches beside CLS, so they need not be pooled into its place.
        known = self.trained_as(method)
        config = prompt_config(known, self.prompts_of(method), mae_backbone=False)
        return adapt(self.twin(method), known, config, self.args.lora_r).to(self.accelerator.device)

    def trained_as(self, method: str) -> str:
        """The one of `METHODS` that trains the same parts of the model."""
        return method

    def twin(self, method: str | None) -> nn.Module:
        """What the result of a method, or what was fitted to the frozen backbone (None), belongs on."""
        return self.backbone.twin(self.predictor_of(method), own_weights=method == "full")

    def prompts_of(self, method: str) -> Any:
        """The settings of a method's prompts: as given, and by the block that is read."""
        entry, dropout = self.prompts.insert_at, self.prompts.prompt_dropout
        return replace(
            self.prompts,
            read_from=None if self.reads_last else self.read,
            insert_at=entry_block(method, self.read) if entry is None else entry,
            prompt_dropout=recommended(method).prompt_dropout if dropout is None else dropout,
        )

    @property
    def read(self) -> int:
        """The highest block that is read."""
        return self.blocks[-1]

    @property
    def reads_last(self) -> bool:
        """Whether the whole backbone runs."""
        return self.read == self.backbone.depth - 1

    def predictor_of(self, method: str | None) -> Any:
        """What is written beside the result of a method, or of the frozen backbone (None).

        Prompts record the block that is read themselves, as `read_from`, so adapters with different blocks share one
        backbone. Everything else needs a backbone that ends there, if it can.
        """
        if self.reads_last or method in PROMPT_METHODS or not self.backbone.can_end:
            return self.predictor
        return replace(self.predictor, base={"num_hidden_layers": self.read + 1})

    def beginning(self, method: str, seed: int, output: Path, images: Any) -> dict[str, Tensor]:
        """The trained tensors that `images` decide, by name, as training on them begins."""
        model = self.model(method, seed, output)
        before = {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}
        self.initialize(model, method, seed, images)
        after = trained_tensors(model)
        return {n: t.detach().cpu().clone() for n, t in after.items() if not torch.equal(t, before[n])}
