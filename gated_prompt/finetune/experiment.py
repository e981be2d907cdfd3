# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What all runs of one command share: data, backbone, the block that is read, and how a model of a method is made."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ..errors import GatedPromptError
from ..predictor import PROBLEM_TYPES, Predictor
from ..starts.head import initialize_head
from ..starts.initialize import initialize_prompts
from ..training.checkpoints import trained_tensors
from ..training.loop import make_accelerator
from ..training.token_cache import CachedPrefix, cache_prefix
from .arguments import RunArguments
from .backbone import Backbone
from .division import Division, Parts
from .image_set import CLASSES, LABELS, ImageSet, Pixels
from .methods import adapt, prompt_config
from .metrics import Measure
from .recipe import PROMPT_METHODS, entry_block, recommended


@dataclass(frozen=True)
class KeptTokens:
    """Tokens of the training and validation images at the prompts' first block, and their labels."""

    train: CachedPrefix
    validation: CachedPrefix


@dataclass(frozen=True)
class Experiment:
    """One command's data, backbone and settings.

    Attributes:
        args: of the run.
        prompts: of the prompts.
        parts: the images.
        backbone: loaded once. The models of all runs are twins of it.
        division: of the labelled images.
        blocks: after which the head reads, from 0.
        measure: what decides.
        l2: strength of the penalty with which heads start, that of the best probe.
        class_weights: (K,), or None.
    """

    args: RunArguments
    prompts: Any
    parts: Parts
    backbone: Backbone
    division: Division
    blocks: tuple[int, ...]
    measure: Measure
    l2: float
    class_weights: list[float] | None

    def start(self, method: str, seed: int, output: Path) -> tuple[Accelerator, nn.Module]:
        """A seeded accelerator, and the model of a method as it is before any image was seen."""
        # Fine-tuning in full: backbones have parameters that no class needs, such as mask tokens.
        unused = DistributedDataParallelKwargs(find_unused_parameters=method == "full")
        together = self.args.gradient_accumulation_steps
        accelerator = make_accelerator(seed, self.args.report_to, output, unused, accumulation=together)
        # The head reads the patches beside CLS: there is no need to pool them into its place.
        config = prompt_config(method, self.prompts_of(method), mae_backbone=False)
        model = adapt(self.twin(method), method, config, self.args.lora_r)
        return accelerator, model.to(accelerator.device)

    def twin(self, method: str | None) -> nn.Module:
        """What the result of a method, or the probe (None), belongs on."""
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

    def predictor_of(self, method: str | None) -> Predictor:
        """What is written beside the result of a method, or of the probe (None).

        Prompts record the block that is read themselves, as `read_from`, so adapters with different blocks share one
        backbone. Everything else needs a backbone that ends there.
        """
        blocks = list(self.blocks) if len(self.blocks) > 1 else None
        predictor = replace(self.backbone.predictor, blocks=blocks)
        if self.reads_last or method in PROMPT_METHODS:
            return predictor
        return replace(predictor, base={"num_hidden_layers": self.read + 1})

    def beginning(self, method: str, seed: int, output: Path, data: ImageSet) -> dict[str, Tensor]:
        """The trained tensors that images decide, by name, as training on `data` begins: prompts, then the head.

        Prompts are tokens of the images, and the head is a probe of what it sees with them in place.
        """
        accelerator, model = self.start(method, seed, output)
        before = {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}
        images = self.share(data, accelerator)
        prompt_start = self.args.prompt_start or recommended(method).prompt_start
        if method in PROMPT_METHODS and prompt_start != "random":
            initialize_prompts(model, images, method=prompt_start, seed=seed)
        self.fit_head(model, images)
        after = trained_tensors(model)
        return {n: t.detach().cpu().clone() for n, t in after.items() if not torch.equal(t, before[n])}

    def keep_tokens(self, method: str, folder: Path) -> KeptTokens | None:
        """Write what reaches the first block with prompts to `folder`, once per image.

        None where blocks have to run in every epoch: they have prompts or weights to train, the head reads them,
        images are augmented, or training cannot start at a later block, which is printed.
        """
        first = self.prompts_of(method).insert_at
        if self.args.augment or method not in PROMPT_METHODS or not first or self.blocks[0] < first:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        accelerator, model = self.start(method, self.args.seeds[0], folder)
        predictor, parts = self.backbone.predictor, (self.parts.train, self.parts.validation)
        files = (folder / "train.safetensors", folder / "validation.safetensors")
        try:
            return KeptTokens(
                *(cache_prefix(model, Pixels(p, predictor), f, accelerator) for p, f in zip(parts, files, strict=True))
            )
        except GatedPromptError as error:
            accelerator.print(f"the blocks below the prompts run in every epoch: {error}")
            return None

    def share(self, images: ImageSet, accelerator: Accelerator) -> DataLoader[Any]:
        """The images that are this process's part, without augmentation."""
        data = Pixels(images, self.backbone.predictor)
        own = Subset(data, range(accelerator.process_index, len(data), accelerator.num_processes))
        return DataLoader(own, self.args.per_device_eval_batch_size, num_workers=self.args.dataloader_num_workers)

    def fit_head(self, model: nn.Module, images: DataLoader[Any]) -> None:
        """Make the head a linear probe of what it sees now."""
        problem = PROBLEM_TYPES[self.parts.train.problem]
        initialize_head(model, images, problem_type=problem, l2=self.l2, class_weights=self.class_weights)

    def loss(self, scores: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean loss of logits or numbers (N, K)."""
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, device=scores.device)
        problem = self.parts.train.problem
        if problem == CLASSES:
            return F.cross_entropy(scores, targets, weights, label_smoothing=smoothing)
        if problem == LABELS:
            return F.binary_cross_entropy_with_logits(scores, targets, pos_weight=weights)
        return F.mse_loss(scores, targets)


@torch.inference_mode()
def score(model: nn.Module, loader: DataLoader[Any], accelerator: Accelerator) -> Tensor:
    """Logits or numbers (N, K), float32 on the CPU of every process, in the order of the images.

    It shows no progress: mostly it runs under the bar of a training.
    """
    model.eval()
    rows = []
    for pixels, _ in loader:
        rows.append(accelerator.gather_for_metrics(model(pixels).logits).float().cpu())
    return torch.cat(rows).clone()
