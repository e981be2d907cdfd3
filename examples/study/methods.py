# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Experiments of the race: JSON settings in the layout of PEFT's `method_comparison`, and the models that they make.

method_comparison/
  default_training_params.json
  experiments/<method>/<name>/adapter_config.json      what `get_peft_model` gets. None for full fine-tuning
  experiments/<method>/<name>/training_params.json     what differs from the defaults
  results/<method>--<name>.jsonl                       one line for each task and draw
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn

from gated_prompt import GatedPromptError, find_vision_transformer
from gated_prompt.training.token_cache import StartAtBlock

from .training import Loop, reader

HERE = Path(__file__).parent / "method_comparison"


@dataclass(frozen=True)
class Training:
    """How one experiment trains.

    Attributes:
        rates: Learning rates to choose from, of everything but the head.
        head_rate: Learning rate of the head, which starts fitted.
        epochs: Passes over the labelled images, after which the weights are taken as they are.
        batch_size: Images in a step.
        warmup: Epochs in which the rate rises.
        start: Method of `initialize_prompts` for prompts that start from images. None leaves the adapter's own start.
        reads: The frozen row whose blocks the head reads, "block set" or "best block".
    """

    rates: tuple[float, ...]
    head_rate: float
    epochs: int
    batch_size: int
    warmup: float
    start: str | None = None
    reads: str = "block set"

    def loop(self, seed: int) -> Loop:
        """How `fit` trains."""
        return Loop(self.epochs, self.warmup, self.batch_size, seed)


@dataclass(frozen=True)
class Experiment:
    """`name` is "<method>/<name>"; `adapter` is None for full fine-tuning."""

    name: str
    training: Training
    adapter: dict[str, Any] | None

    @property
    def results(self) -> str:
        """File name of its results."""
        return self.name.replace("/", "--") + ".jsonl"


def experiments(folder: Path = HERE) -> dict[str, Experiment]:
    """All experiments by name.

    Raises:
        GatedPromptError: a file holds a setting that is unknown.
    """
    default = json.loads((folder / "default_training_params.json").read_text())
    found = {}
    for own in sorted((folder / "experiments").glob("*/*/")):
        changed = own / "training_params.json"
        settings = {**default, **(json.loads(changed.read_text()) if changed.is_file() else {})}
        try:
            training = Training(**{**settings, "rates": tuple(settings["rates"])})
        except (TypeError, KeyError) as error:
            raise GatedPromptError(f"{changed}: {error}") from error
        adapter = own / "adapter_config.json"
        name = f"{own.parent.name}/{own.name}"
        found[name] = Experiment(name, training, json.loads(adapter.read_text()) if adapter.is_file() else None)
    return found


def first_trained_block(blocks: tuple[int, ...]) -> int:
    """All methods act on the upper half of the blocks below the read-out, and on all that are read.

    What enters the first of them is computed once."""
    return min(blocks[0], (blocks[-1] + 1) // 2)


def build(
    experiment: Experiment, backbone: Path, blocks: tuple[int, ...], num_classes: int, seed: int
) -> tuple[nn.Module, StartAtBlock]:
    """The model before its head is fitted, and what lets it start at the first block that is trained."""
    torch.manual_seed(seed)
    base, first = reader(backbone, blocks, num_classes), first_trained_block(blocks)
    start = StartAtBlock(base, first)  # found before an adapter makes blocks differ
    if experiment.adapter is None:
        base.requires_grad_(False)
        for block in find_vision_transformer(base).blocks[first:]:
            block.requires_grad_(True)
        base.classifier.requires_grad_(True)
        return base, start
    settings = {**experiment.adapter, "modules_to_save": ["classifier"]}
    if settings["peft_type"] == "GATED_PROMPT":
        settings["insert_at"] = first
    for key in ("target_modules", "feedforward_modules"):
        if key in settings:
            settings[key] = _inside(base, first, settings[key])
    return get_peft_model(base, PeftConfig.from_peft_type(**settings)), start


def _inside(base: nn.Module, first: int, names: list[str]) -> list[str]:
    """Full names of the modules that end in one of `names` in the blocks from `first` on."""
    vit = find_vision_transformer(base)
    inside = {id(module) for block in vit.blocks[first:] for module in block.modules()}
    return [name for name, m in base.named_modules() if id(m) in inside and name.rpartition(".")[2] in names]
