# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Open a checkpoint without running code from it, and find the state dict in it."""

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from ..errors import ConversionError

CONTAINERS = ("teacher", "student", "state_dict", "model")  # the first that is there; DINO evaluates its teacher


@dataclass(frozen=True)
class StateDict:
    """The tensors of one file by their names there; `container` is the entry that held them, None for the file itself.

    `others` are the file's other entries (optimizer, epoch, ...), `arch` the architecture that MoCo v3 notes.
    """

    tensors: dict[str, torch.Tensor]
    container: str | None
    others: list[str]
    arch: str | None


def read_state_dict(path: Path) -> StateDict:
    """Read a `.safetensors` file, or one that `torch.save` wrote.

    Raises:
        ConversionError: the file is missing, unreadable, holds objects that only code could rebuild, or no state dict.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise ConversionError(f"{path} is {what}, expected a checkpoint file (.pth, .pth.tar, .bin, .safetensors)")
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise ConversionError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of tensors, as state_dict() gives it"
        )
    container = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
    state: Mapping[Any, Any] = content if container is None else content[container]
    others = [str(name) for name in content if name != container] if container else []
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(
            f"{path} holds no state dict; its entries are {_some(state)}, expected tensors, or one of "
            f"{', '.join(CONTAINERS)} that holds them"
        )
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise ConversionError(f"{name!r} in {path} is a {type(value).__name__}, expected only tensors beside it")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ConversionError(f"{name} in {path} holds NaN or infinite values; download it again")
    arch = content.get("arch")
    return StateDict(dict(state), container, others, arch if isinstance(arch, str) else None)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that torch does not have
        raise ConversionError(f"{path} is not a readable safetensors file ({error}); download it again") from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_plain_values()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        unsafe = re.search(r"unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", str(error), re.IGNORECASE)
        if unsafe is not None:
            raise ConversionError(
                f"{path} holds more than tensors and plain values ({unsafe[1]}), and opening that can run code. If "
                "you trust its origin, open it yourself and save its state dict alone with safetensors.torch.save_file"
            ) from error
        raise ConversionError(
            f"{path} is not a readable PyTorch file ({type(error).__name__}); download it again"
        ) from error


def _plain_values() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What MAE and DINO save beside tensors: the command line, and learning rates as NumPy numbers. Plain data."""
    scalar: Any = np.float64(0).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, and since
    return [
        argparse.Namespace,
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
        *((scalar, f"{module}.scalar") for module in modules),
    ]


def _some(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:8])
    return shown + (", ..." if len(names) > 8 else "") if shown else "none"
