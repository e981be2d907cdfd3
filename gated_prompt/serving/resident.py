# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One adapter in memory."""

from dataclasses import dataclass
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from ..files.adapter_file import stamp_of
from ..files.folder import PENDING_NAME
from ..predictor import FILE, Predictor
from .contents import PROBE

Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(eq=False)
class Resident:
    """An adapter in memory.

    Attributes:
        key: its name on the model, that of the base for a probe, which has no prompts.
        weight, bias: of its head, (K, F) and (K,).
        predictor: its class names, its preprocessing and what its head reads.
        blocks: after which the head reads. None: the output of the backbone.
        sha256: of its weights file, according to its config.
        nbytes: memory of its tensors.
        stamp: of the files that it was read from.
        users: number of calls that hold it.
    """

    key: str
    weight: Tensor
    bias: Tensor | None
    predictor: Predictor
    blocks: tuple[int, ...] | None
    sha256: str | None
    nbytes: int
    stamp: Stamp
    users: int = 0


def stamp_of_folder(folder: Path) -> Stamp:
    """A value that changes when another adapter replaces this one."""
    return tuple(
        stamp_of(folder / name) for name in (CONFIG_NAME, PENDING_NAME, SAFETENSORS_WEIGHTS_NAME, PROBE, FILE)
    )
