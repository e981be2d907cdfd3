# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Check an adapter file before PEFT loads it.

PEFT loads files with missing keys (a warning), surplus keys and NaNs (silently). A prompt adapter is small, so
reading it once more to refuse all of that costs little.
"""

import os
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from .errors import DamagedAdapterError
from .layout import BANK, GATE_LOGITS, TEMPERATURES, TOKENS, parameter_shapes

if TYPE_CHECKING:
    from .config import GatedPromptConfig

PREFIX = "base_model.model."


def check_adapter_file(
    config: "GatedPromptConfig", source: str, subfolder: str | None, download_kwargs: dict[str, Any]
) -> dict[str, tuple[int, ...]] | None:
    """Shapes of all tensors in the adapter file by key, or None where there is only a config.

    Raises:
        DamagedAdapterError: the file cannot be read, lacks a tensor, holds one that does not belong there, one of
            a wrong shape, or one with non-finite numbers.
    """
    path = _locate(source, subfolder, download_kwargs)
    if path is None:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the handle is no dict)
    except (SafetensorError, OSError) as error:
        raise DamagedAdapterError(
            f"{path} is not a readable safetensors file ({error}); save or download the adapter again"
        ) from error
    if config.num_layers is None or config.hidden_size is None:
        raise DamagedAdapterError(
            f"adapter_config.json beside {path} lacks num_layers or hidden_size, which every saved adapter records; "
            "save the adapter again"
        )
    _check_keys_and_shapes(config, path, tensors)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DamagedAdapterError(f"{key} in {path} holds NaN or infinite values; train or download it again")
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _locate(source: str, subfolder: str | None, download_kwargs: dict[str, Any]) -> str | None:
    folder = os.path.join(source, subfolder) if subfolder else source
    path = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    if os.path.isfile(path):
        return path
    if os.path.isdir(folder):
        return None
    try:
        return hf_hub_download(source, SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **download_kwargs)
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None


def _check_keys_and_shapes(config: "GatedPromptConfig", path: str, tensors: dict[str, torch.Tensor]) -> None:
    expected = {
        f"{PREFIX}{BANK}.{name}": shape
        for name, shape in parameter_shapes(config, config.num_layers or 0, config.hidden_size or 0).items()
    }
    heads = [f"{PREFIX}{name}." for name in config.modules_to_save or []]
    for key, shape in expected.items():
        if key not in tensors:
            raise DamagedAdapterError(f"{path} lacks {key}, expected with shape {shape}; save or download it again")
        if tuple(tensors[key].shape) != shape:
            found = tuple(tensors[key].shape)
            raise DamagedAdapterError(
                f"{key} in {path} has shape {found}, but its adapter_config.json means {shape}; "
                "config and weights must come from the same save"
            )
    for head in heads:
        if not any(key.startswith(head) for key in tensors):
            raise DamagedAdapterError(f"{path} lacks the tensors of the head {head!r}; save or download it again")
    # PEFT 0.18 also writes the prompts of all other adapters on the model, under their names; no loader reads them.
    others = tuple(f"{PREFIX}{BANK}.{name}." for name in (TOKENS, GATE_LOGITS, TEMPERATURES))
    surplus = [key for key in tensors if key not in expected and not key.startswith((*heads, *others))]
    if surplus:
        raise DamagedAdapterError(
            f"{path} holds tensors that do not belong to this adapter: {', '.join(sorted(surplus)[:5])}; expected are "
            f"{', '.join(sorted(expected))}" + (f" and those of {', '.join(heads)}" if heads else "")
        )
