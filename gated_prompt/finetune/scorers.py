# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From pixels to logits with the output of gated-prompt train; prompts on one backbone share a pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import gated_prompt

from ..predictor import Predictor
from ..sharing.classifier import holds_prompts, load_trained


@dataclass(frozen=True)
class Group:
    """Predictors by label that see the same pixels, and the module that scores with all of them: logits (B, A, K)."""

    members: Mapping[str, Predictor]
    module: nn.Module

    @property
    def first(self) -> Predictor:
        return next(iter(self.members.values()))


def make_groups(found: Mapping[str, tuple[Path, Predictor]], trust_remote_code: bool = False) -> list[Group]:
    """One group for all adapters of prompts that share base, images and number of outputs; one for each other.

    Raises:
        GatedPromptError: a backbone cannot be loaded, or what was trained does not fit it.
    """
    shared: dict[str, dict[str, tuple[Path, Predictor]]] = {}
    for label, (folder, one) in found.items():
        same = (one.backbone, one.base, one.reads, one.preparation, one.problem, len(one.names))
        shared.setdefault(repr(same) if holds_prompts(folder) else label, {})[label] = (folder, one)
    groups = []
    for members in shared.values():
        folders, predictors = zip(*members.values(), strict=True)
        scorer = Scorer(folders, predictors[0], trust_remote_code).eval()
        groups.append(Group(dict(zip(members, predictors, strict=True)), scorer))
    return groups


class Scorer(nn.Module):
    """The model of one folder; or several adapters of prompts on one backbone, in one mixed batch."""

    def __init__(self, folders: Sequence[Path], predictor: Predictor, trust_remote_code: bool = False) -> None:
        super().__init__()
        model: Any = load_trained(folders[0], predictor, trust_remote_code)
        self.names = ["default"]
        for folder in folders[1:]:
            self.names.append(f"adapter{len(self.names)}")
            gated_prompt.load(model, folder, self.names[-1])
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        if len(self.names) == 1:
            return self.model(pixel_values).logits[:, None]
        names = [name for name in self.names for _ in range(len(pixel_values))]
        logits = self.model(pixel_values.repeat(len(self.names), 1, 1, 1), adapter_names=names).logits
        return logits.unflatten(0, (len(self.names), -1)).transpose(0, 1)
