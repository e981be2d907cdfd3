# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From pixels to logits, by what train_images.py left behind; prompts on one backbone share a pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification

import gated_prompt
from gated_prompt import GatedPromptError, find_vision_transformer
from recipe.methods import PROMPT_METHODS, read_patches

from .features import pool
from .image_set import PROBLEM_TYPES
from .predictor import PROBE, Predictor


@dataclass(frozen=True)
class Group:
    """Predictors by label that see the same pixels, and the module that scores with all of them: logits (B, A, K)."""

    members: Mapping[str, Predictor]
    module: nn.Module

    @property
    def preparation(self) -> dict[str, Any]:
        return next(iter(self.members.values())).preparation


def make_groups(found: Mapping[str, tuple[Path, Predictor]]) -> list[Group]:
    """One group for all adapters of prompts that share backbone, pictures and number of outputs; one for each other.

    Raises:
        GatedPromptError: a backbone cannot be loaded, or weights do not fit it.
    """
    shared: dict[str, dict[str, tuple[Path, Predictor]]] = {}
    for label, (folder, one) in found.items():
        prompts = one.kind == "adapter" and one.method in PROMPT_METHODS
        same = (one.backbone, one.base, one.preparation, one.problem, len(one.names))
        shared.setdefault(repr(same) if prompts else label, {})[label] = (folder, one)
    groups = []
    for members in shared.values():
        folders, predictors = zip(*members.values(), strict=True)
        groups.append(Group(dict(zip(members, predictors, strict=True)), _module(folders, predictors).eval()))
    return groups


def _module(folders: Sequence[Path], predictors: Sequence[Predictor]) -> nn.Module:
    first = predictors[0]
    if first.kind == "probe":
        return ProbeScorer(folders[0], first)
    if first.method in PROMPT_METHODS:
        return PromptScorer(folders, first)
    base: Any = (
        _classifier(first) if first.kind == "adapter" else _load(AutoModelForImageClassification, str(folders[0]))
    )
    if first.pooling is not None:
        read_patches(base)
    return SingleScorer(PeftModel.from_pretrained(base, folders[0]) if first.kind == "adapter" else base)


class ProbeScorer(nn.Module):
    """A linear model of the features of one block."""

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        super().__init__()
        self.backbone = _load(AutoModel, predictor.backbone, **predictor.base)
        self.prefix = find_vision_transformer(self.backbone).num_prefix_tokens
        tensors = load_file(folder / PROBE)
        self.head = nn.Linear(tensors["weight"].shape[1], tensors["weight"].shape[0])
        self.head.load_state_dict(tensors)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.backbone(pixel_values).last_hidden_state
        return self.head(pool(tokens, self.prefix))[:, None]


class PromptScorer(nn.Module):
    """Adapters on one backbone; several of them in one mixed batch."""

    def __init__(self, folders: Sequence[Path], predictor: Predictor) -> None:
        super().__init__()
        model: Any = _classifier(predictor)
        self.names = [f"adapter{index}" for index in range(len(folders))]
        for name, folder in zip(self.names, folders, strict=True):
            model = gated_prompt.load(model, folder, name)
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        if len(self.names) == 1:
            return self.model(pixel_values).logits[:, None]
        names = [name for name in self.names for _ in range(len(pixel_values))]
        logits = self.model(pixel_values.repeat(len(self.names), 1, 1, 1), adapter_names=names).logits
        return logits.unflatten(0, (len(self.names), -1)).transpose(0, 1)


class SingleScorer(nn.Module):
    """LoRA, or a whole model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits[:, None]


def _classifier(predictor: Predictor) -> nn.Module:
    return _load(
        AutoModelForImageClassification,
        predictor.backbone,
        num_labels=len(predictor.names),
        problem_type=PROBLEM_TYPES[predictor.problem],
        ignore_mismatched_sizes=True,
        **predictor.base,
    )


def _load(kind: Any, source: str, **settings: Any) -> nn.Module:
    try:
        return kind.from_pretrained(source, dtype="float32", **settings)
    except OSError as error:
        raise GatedPromptError(
            f"cannot load {source!r}, which the weights were trained on ({str(error).splitlines()[0]}); put it back, "
            "or give its place with --backbone"
        ) from error
