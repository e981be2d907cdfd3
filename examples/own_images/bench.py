# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What all runs of one command share: data, backbone, the block that is read, and how a model of a method is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from gated_prompt import initialize_head
from recipe.checkpoints import trained_tensors
from recipe.loop import start
from recipe.methods import build_model

from .arguments import RunArguments
from .image_set import CLASSES, LABELS, PROBLEM_TYPES
from .measures import Measure
from .pixels import Pixels
from .reading import Parts


@dataclass(frozen=True)
class Bench:
    """One command's data and settings.

    Attributes:
        args: of the run.
        prompts: of the prompts.
        parts: the pictures.
        preparation: how they become pixels.
        base: settings of the backbone's config that differ: how many of its blocks are used.
        measure: what decides.
        l2: strength of the penalty with which heads start, that of the best probe.
        class_weights: (K,), or None.
    """

    args: RunArguments
    prompts: Any
    parts: Parts
    preparation: Mapping[str, Any]
    base: Mapping[str, int]
    measure: Measure
    l2: float
    class_weights: list[float] | None

    def start(self, method: str, seed: int, output: Path) -> tuple[Accelerator, nn.Module]:
        """A seeded accelerator, and the model of a method as it starts, without its head's start."""
        accelerator = start(seed, self.args.report_to, output, accumulation=self.args.gradient_accumulation_steps)
        model = build_model(
            self.args.backbone,
            method,
            self.prompts,
            list(self.parts.train.names),
            kind=self.args.backbone_kind,
            lora_r=self.args.lora_r,
            base={**self.base, "problem_type": PROBLEM_TYPES[self.parts.train.problem]},
        )
        return accelerator, model.to(accelerator.device)

    def head_start(self, method: str, seed: int, output: Path) -> dict[str, Tensor]:
        """The tensors of the head, by name, fitted to the features of a fresh model of this method and seed."""
        accelerator, model = self.start(method, seed, output)
        before = {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}
        data = Pixels(self.parts.train, dict(self.preparation))
        share = range(accelerator.process_index, len(data), accelerator.num_processes)
        loader = DataLoader(
            torch.utils.data.Subset(data, share),
            self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
        )
        problem = PROBLEM_TYPES[self.parts.train.problem]
        initialize_head(model, loader, problem_type=problem, l2=self.l2, class_weights=self.class_weights)
        after = trained_tensors(model)
        return {n: t.detach().cpu().clone() for n, t in after.items() if not torch.equal(t, before[n])}

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
    """Logits or numbers (N, K), float32 on the CPU of every process, in the order of the pictures."""
    model.eval()
    rows = []
    for pixels, _ in tqdm(loader, desc="score", disable=not accelerator.is_main_process, leave=False):
        rows.append(accelerator.gather_for_metrics(model(pixels).logits).float().cpu())
    return torch.cat(rows).clone()
