# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Two usual ways to serve many tasks, in place of `AdapterPool`. For measurements only.

Both take the tasks of a folder of gated adapters but give each task random weights: time and memory are measured, not
accuracy.
"""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from gated_prompt.predictor import Predictor, read_predictor
from gated_prompt.serving.backbone import load_backbone
from gated_prompt.serving.settings import Settings
from gated_prompt.serving.store import Store


@dataclass(eq=False)
class Task:
    """A task in memory: the name of its model or adapter, its head and its class names."""

    key: str
    head: nn.Linear
    predictor: Predictor
    sha256: str | None = None


class Tasks:
    """The part of `AdapterPool` that `Server` uses. A task is created at its first request and stays."""

    nbytes = 0  # not counted here: the measurement reads the memory of the process

    def __init__(self, backbone: str) -> None:
        self.base = load_backbone(backbone).eval().requires_grad_(False)
        self.width = self.base.config.hidden_size
        self.found: dict[Path, Task] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.found)

    @contextmanager
    def hold(self, folder: Path) -> Iterator[Task]:
        """The task in `folder`."""
        with self.lock:
            if folder not in self.found:
                predictor = read_predictor(folder)
                head = nn.Linear(self.width, len(predictor.names)).requires_grad_(False)
                task = Task(f"t{len(self.found)}", head, predictor)
                self.create(task.key)
                self.found[folder] = task
        yield self.found[folder]

    def forget(self, folder: Path) -> None:
        """Do nothing: tasks stay."""

    @torch.inference_mode()
    def logits(self, pixels: Tensor, tasks: Sequence[Task]) -> list[Tensor]:
        """Logits (K_i,) of each image of `pixels` (B, 3, H, W) from its own task."""
        features = self.features(pixels, [task.key for task in tasks])
        return [task.head(row) for row, task in zip(features, tasks, strict=True)]

    def create(self, key: str) -> None:
        """Weights of one more task."""
        raise NotImplementedError

    def features(self, pixels: Tensor, keys: list[str]) -> list[Tensor]:
        """Features (D,) of each image."""
        raise NotImplementedError


class FullModels(Tasks):
    """One full model per task: only images of the same task share a batch."""

    def __init__(self, backbone: str) -> None:
        super().__init__(backbone)
        self.models: dict[str, Any] = {}

    def create(self, key: str) -> None:
        """A copy of the backbone with slightly different weights, as after fine-tuning."""
        self.models[key] = copy.deepcopy(self.base)
        for parameter in self.models[key].parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)

    def features(self, pixels: Tensor, keys: list[str]) -> list[Tensor]:
        """One call of each model that the batch needs."""
        rows: dict[int, Tensor] = {}
        for key in dict.fromkeys(keys):
            places = [place for place, one in enumerate(keys) if one == key]
            rows |= zip(places, self.models[key](pixel_values=pixels[places]).logits, strict=True)
        return [rows[place] for place in range(len(keys))]


class LoraAdapters(Tasks):
    """PEFT's LoRA of rank 8 on queries and values, in PEFT's own mixed batches."""

    def __init__(self, backbone: str) -> None:
        super().__init__(backbone)
        self.config = LoraConfig(r=8, target_modules=r".*\.(query|value|q_proj|v_proj)", init_lora_weights=False)
        self.model: Any = None

    def create(self, key: str) -> None:
        """A random adapter, small enough to keep the features in their usual range."""
        if self.model is None:
            self.model = get_peft_model(self.base, self.config, adapter_name=key)
        else:
            self.model.add_adapter(key, self.config)
        self.model.eval().requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            if f"lora_B.{key}." in name:
                parameter.mul_(0.1)

    def features(self, pixels: Tensor, keys: list[str]) -> list[Tensor]:
        """One mixed batch."""
        return list(self.model(pixel_values=pixels, adapter_names=keys).logits)


def load_full_models(settings: Settings) -> tuple[Store, FullModels]:
    """What the server calls in place of `serving.replica.load_folder`."""
    return Store(settings.adapters), FullModels(settings.backbone)


def load_lora(settings: Settings) -> tuple[Store, LoraAdapters]:
    """What the server calls in place of `serving.replica.load_folder`."""
    return Store(settings.adapters), LoraAdapters(settings.backbone)
