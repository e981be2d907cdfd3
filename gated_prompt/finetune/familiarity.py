# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Is a new image unlike anything trained on? Its distance to the nearest labelled image, as the probe reads both.

A softmax has to name some class of every image. Distances to neighbours need no classes and no training (Sun et al.,
2022, arXiv 2204.06507). The score here is a share: 0.99 means that the image is farther from the labelled images than
99 % of these are from one another.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import GatedPromptError
from ..starts.linear_probe import Axes

FILE = "familiar.safetensors"
AXES = 128  # most principal axes of the features. With all of them the file is several times as large
MOST = 2000  # images in the file


@dataclass(frozen=True)
class Familiar:
    """A summary of the labelled images.

    Attributes:
        center: (F,), of the features.
        axes: (F, R), from centred features to their principal axes, standardised before.
        bank: (N, R), unit vectors.
        known: (N,), the distance of each of these images to the nearest other one, ascending.
    """

    center: Tensor
    axes: Tensor
    bank: Tensor
    known: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Familiar":
        """Summarize features (N, F), N at least 2. Of many images, `MOST` at regular intervals are used."""
        x = features.float()
        if len(x) > MOST:
            x = x[torch.linspace(0, len(x) - 1, MOST).long()]
        principal = Axes.of(x, centered=True)
        axes = (principal.axes[-AXES:] / principal.scale).T.contiguous()  # of the largest variances
        bank = F.normalize((x - principal.center) @ axes, dim=1)
        return cls(principal.center, axes, bank, distances(bank, bank, itself=True).sort().values)

    def unlike(self, features: Tensor) -> Tensor:
        """Shares (B,) between 0 and 1 of features (B, F)."""
        asked = F.normalize((features.float() - self.center) @ self.axes, dim=1)
        return torch.searchsorted(self.known, distances(asked, self.bank)) / len(self.known)

    def write(self, folder: Path) -> None:
        """Write the summary into a folder, atomically."""
        partial = folder / f"{FILE}.partial"
        save_file(asdict(self), partial)
        os.replace(partial, folder / FILE)


def read_familiar(folder: Path) -> Familiar:
    """Read what `Familiar.write` wrote.

    Raises:
        GatedPromptError: there is no such file, or it holds something else.
    """
    file = folder / FILE
    if not file.is_file():
        raise GatedPromptError(
            f"{folder} has no {FILE}, which --unlike needs. gated-prompt train leaves one beside the probe. Give "
            "the folder probe/ of a run."
        )
    try:
        return Familiar(**load_file(file))
    except Exception as error:  # safetensors has its own errors, and other tensors are a TypeError
        raise GatedPromptError(f"{file} cannot be read ({error}). Run gated-prompt train again.") from error


def distances(asked: Tensor, bank: Tensor, itself: bool = False) -> Tensor:
    """Return the distance (B,) to the nearest row of the bank. With `itself`, no row is its own neighbour."""
    found = torch.cdist(asked, bank)
    if itself:
        found.fill_diagonal_(torch.inf)
    return found.min(1).values
