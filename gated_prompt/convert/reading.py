# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Load a checkpoint without running code from it, and find its state dict."""

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

CONTAINERS = ("teacher", "student", "state_dict", "model")  # the first present. DINO evaluates its teacher


@dataclass(frozen=True)
class StateDict:
    """The tensors of one file by name. `container` is the entry that held them, None if they were at the top level.

    `others` are the file's other entries (optimizer, epoch, ...), `arch` the architecture that MoCo v3 records.
    """

    tensors: dict[str, torch.Tensor]
    container: str | None
    others: list[str]
    arch: str | None


def read_state_dict(path: Path) -> StateDict:
    """Read a `.safetensors` file, or one that `torch.save` wrote.

    Raises:
        ConversionError: the file is missing or unreadable, contains objects that only code could rebuild, or has no
            state dict.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConversionError(f"{path} {what}, expected a checkpoint file (.pth, .pth.tar, .bin, .safetensors)")
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise ConversionError(
            f"{path} contains a {type(content).__name__}, expected a dictionary of tensors as returned by state_dict()"
        )
    container = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
    state: Mapping[Any, Any] = content if container is None else content[container]
    others = [str(name) for name in content if name != container] if container else []
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(
            f"{path} has no state dict. Its entries are {_some(state)}, expected tensors, or one of "
            f"{', '.join(CONTAINERS)} that contains them."
        )
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise ConversionError(
                f"{name!r} in {path} is a {type(value).__name__}, expected only tensors in a state dict"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ConversionError(f"{name} in {path} contains NaN or infinite values. Download it again.")
    arch = content.get("arch")
    return StateDict(dict(state), container, others, arch if isinstance(arch, str) else None)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that torch does not have
        raise ConversionError(f"{path} is not a readable safetensors file ({error}). Download it again.") from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_plain_values()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        unsafe = re.search(r"unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", str(error), re.IGNORECASE)
        if unsafe is not None:
            raise ConversionError(
                f"{path} contains more than tensors and plain values ({unsafe[1]}), and loading that can run code. If "
                "you trust its source, load it yourself and save only its state dict with safetensors.torch.save_file"
            ) from error
        raise ConversionError(
            f"{path} is not a readable PyTorch file ({type(error).__name__}). Download it again."
        ) from error


def _plain_values() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Types that MAE and DINO save with the tensors, all plain data: the command line, and NumPy numbers."""
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
