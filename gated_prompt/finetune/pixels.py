# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Images as a backbone expects them: resized, cropped, and for training also flipped."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..predictor import Predictor
from ..sharing.image_settings import image_settings
from ..transforms import ResizeCenterCrop
from .image_set import ImageSet


def preparation(backbone: str, side: int | None) -> dict[str, Any]:
    """Settings of `ResizeCenterCrop` for a backbone: the short side to 8/7 of `side`, then a crop; ready for JSON."""
    wanted = image_settings(backbone)
    side = side or wanted.side
    return {"mean": list(wanted.mean), "std": list(wanted.std), "resize": round(side * 256 / 224), "crop": side}


class Pixels(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (pixels (3, side, side), label), as `predictor` prepares images.

    With `seed`, crops and flips are drawn from seed, epoch and position alone, so that they are the same after
    resuming and with any number of processes that decode.
    """

    def __init__(self, data: ImageSet, predictor: Predictor, seed: int | None = None) -> None:
        self.data, self.seed, self.epoch = data, seed, 0
        drawn = seed is not None
        self.transform = ResizeCenterCrop(**predictor.preparation, train=True) if drawn else predictor.transform()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.data.pictures[index].decode(), self.data.targets[index]
        if self.seed is None:
            return self.transform(image), target
        drawn = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(drawn))  # torch.manual_seed would reach the GPU's dropout as well
            return self.transform(image), target
