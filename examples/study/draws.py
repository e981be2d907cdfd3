# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Three draws of the labelled images of a task, and what the frozen backbone makes of all its images, kept on disk."""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from tqdm import tqdm

from gated_prompt.heads import load_backbone, read_tokens

from . import tasks

DRAWS = (0, 1, 2)
FOLDS = 5
BATCH = 100
POOLED = 2500  # images of a task, at most: all but 3900 of EuroSAT's


@dataclass(frozen=True)
class Draw:
    """Indices into the pool: images with labels, and the images to score on once."""

    labelled: Tensor
    test: Tensor


def draw_images(labels: Tensor, size: int, number: int) -> Draw:
    """Draw 0 takes the first `size` images of the pool. The others take as many of each class, at random.

    So class frequencies are the same in all draws, among the labelled images and among the test images.
    """
    order = torch.arange(len(labels))
    if number:
        rng = np.random.default_rng(number)
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            order[members] = members[rng.permutation(len(members))]
    return Draw(order[:size], order[size:])


def folds(labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Positions to fit on and to score on, for each of `FOLDS` stratified folds. Some classes have fewer images."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        pairs = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels))
    return [(torch.from_numpy(fit), torch.from_numpy(held)) for fit, held in pairs]


class Pool:
    """The first `POOLED` images of a real task, in the order train, val, test. Decoded when they are first needed."""

    def __init__(self, name: str, data_dir: Path, backbone: Path, kept_in: Path) -> None:
        self.name, self._data_dir, self.backbone, self._kept_in = name, data_dir, backbone, kept_in

    @cached_property
    def images(self) -> tasks.Part:
        """Pixels and labels."""
        parts = tasks.load(self.name, self._data_dir).parts.values()
        pixels, labels = (torch.cat(values) for values in zip(*((p.pixels, p.labels) for p in parts), strict=True))
        return tasks.Part(pixels[:POOLED], labels[:POOLED])

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """`blocks`: (N, L, 2 D) in half precision, what a head reads after each block. `labels`: (N,)."""

        def make() -> dict[str, Tensor]:
            blocks = torch.cat(list(block_features(self.backbone, self.images)))
            return {"blocks": blocks, "labels": self.images.labels}

        return self._kept("features", make)

    @property
    def labels(self) -> Tensor:
        return self.features["labels"]

    @property
    def num_classes(self) -> int:
        return 1 + int(self.labels.max())

    def tokens(self, entry: int) -> Tensor:
        """Tokens (N, 1 + patches, D) that enter block `entry`, in half precision."""
        return self._kept(f"tokens{entry}", lambda: {"tokens": torch.cat(list(self._tokens(entry)))})["tokens"]

    def draw(self, number: int) -> Draw:
        """One of `DRAWS`: 1000 labelled images, 800 for dtd10; draw 0 is the published split."""
        return draw_images(self.labels, 800 if self.name == "dtd10" else 1000, number)

    def _kept(self, what: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        file = self._kept_in / f"{self.name}-{what}.safetensors"
        if not file.is_file():
            self._kept_in.mkdir(parents=True, exist_ok=True)
            save_file(make(), file.with_suffix(".partial"))
            os.replace(file.with_suffix(".partial"), file)
        return load_file(file)

    @torch.inference_mode()
    def _tokens(self, entry: int) -> Iterator[Tensor]:
        model = load_backbone(str(self.backbone), num_hidden_layers=max(1, entry))
        for pixels in _batches(self.images, f"tokens that enter block {entry}"):
            yield model(pixels, output_hidden_states=True).hidden_states[entry].half()


@torch.inference_mode()
def block_features(backbone: Path, part: tasks.Part) -> Iterator[Tensor]:
    """What a head reads after each block, (B, L, 2 D) in half precision, batch by batch."""
    model = load_backbone(str(backbone))
    for pixels in _batches(part, "features of every block"):
        states = model(pixels, output_hidden_states=True).hidden_states[1:]
        yield torch.stack([read_tokens(model.layernorm(state), 1, "both") for state in states], dim=1).half()


def _batches(part: tasks.Part, what: str) -> Iterator[Tensor]:
    for index in tqdm(torch.arange(len(part)).split(BATCH), what, leave=False):
        yield part.batch(index)
