# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One adapter in memory: its head, and what is known of its file before it is read."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError
from ..files.adapter_file import AdapterFile, stamp_of
from ..files.folder import PENDING_NAME
from ..files.layout import BANK, PREFIX
from ..predictor import FILE, Predictor

Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(eq=False)
class Resident:
    """An adapter in memory.

    Attributes:
        key: its name on the model.
        weight, bias: of its head, (K, F) and (K,).
        predictor: its class names, its preprocessing and what its head reads.
        sha256: of its weights file, according to its config.
        nbytes: memory of its tensors.
        stamp: of the files that it was read from.
        users: number of calls that hold it.
    """

    key: str
    weight: Tensor
    bias: Tensor | None
    predictor: Predictor
    sha256: str | None
    nbytes: int
    stamp: Stamp
    users: int = 0


def stamp_of_folder(folder: Path) -> Stamp:
    """A value that changes when another adapter replaces this one."""
    return tuple(stamp_of(folder / name) for name in (CONFIG_NAME, PENDING_NAME, SAFETENSORS_WEIGHTS_NAME, FILE))


def memory_of(file: AdapterFile) -> int:
    """Bytes of memory that an adapter takes, from its header: prompts and head are kept in float32."""
    return sum(4 * torch.Size(entry.shape).numel() for entry in file.entries.values())


def head_of(
    folder: Path, config: GatedPromptConfig, tensors: dict[str, Tensor], predictor: Predictor
) -> tuple[Tensor, Tensor | None]:
    """Weight (K, F) and bias (K,), or None, of an adapter's only head.

    Raises:
        AdapterMismatchError: its head is not a single linear layer, or does not match the number of its names.
    """
    heads = config.modules_to_save or []
    keys = [f"{PREFIX}{heads[0]}.weight", f"{PREFIX}{heads[0]}.bias"] if len(heads) == 1 else []
    others = [key for key in tensors if not key.startswith(f"{PREFIX}{BANK}.") and key not in keys]
    if not keys or keys[0] not in tensors or tensors[keys[0]].ndim != 2 or others:
        raise AdapterMismatchError(
            f"the adapter in {folder} has the head(s) {', '.join(heads) or 'none'}; it needs a single linear layer"
        )
    weight, bias = tensors[keys[0]], tensors.get(keys[1])
    if len(weight) != len(predictor.names) or (bias is not None and bias.shape != weight.shape[:1]):
        raise AdapterMismatchError(
            f"{folder / FILE} names {len(predictor.names)} classes, but the head has {len(weight)}; they must come "
            "from the same training"
        )
    return weight.float(), None if bias is None else bias.float()
