# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Check an adapter file before PEFT loads it.

PEFT loads files with missing keys (a warning), surplus keys and NaNs (silently). A prompt adapter is small, so
reading it once more to refuse all of that costs little.
"""

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from huggingface_hub import file_exists, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError

from ..errors import DamagedAdapterError
from .config_file import FINGERPRINT, fingerprint
from .layout import BANK, PARAMETERS, parameter_shapes

if TYPE_CHECKING:
    from ..config import GatedPromptConfig

PREFIX = "base_model.model."
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Entry(NamedTuple):
    """What is compared of a tensor in the file with one of the base model."""

    shape: tuple[int, ...]
    is_float: bool


def check_adapter_file(
    config: "GatedPromptConfig", source: str, subfolder: str | None, download_kwargs: dict[str, Any]
) -> tuple[str | None, dict[str, Entry] | None]:
    """Path of the adapter file, and shapes and types of its tensors by key; None where there is only a config.

    Raises:
        DamagedAdapterError: the file cannot be read, is a pickle, is not the one that the config was saved with,
            lacks a tensor, holds one that does not belong there, one of a wrong shape or type, or one with
            non-finite numbers.
    """
    path = _locate(source, subfolder, download_kwargs)
    if path is None:
        return None, None
    try:
        with open(path, "rb") as file:
            data = file.read()
        tensors = safetensors.torch.load(data)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that torch does not have
        raise DamagedAdapterError(
            f"{path} is not a readable safetensors file ({error}); save or download the adapter again"
        ) from error
    if config.num_layers is None or config.hidden_size is None:
        raise DamagedAdapterError(
            f"{CONFIG_NAME} beside {path} lacks num_layers or hidden_size, which every saved adapter records; "
            "save the adapter again"
        )
    _check_keys_and_shapes(config, path, tensors)
    for key, tensor in tensors.items():
        if tensor.dtype.is_floating_point and not torch.isfinite(tensor.to(torch.float64)).all():
            raise DamagedAdapterError(f"{key} in {path} holds NaN or infinite values; train or download it again")
    # Last, as the checks above say more. Equal shapes do not make a pair: pooling or block indices have none.
    if config.weights_sha256 not in (None, fingerprint(data)):
        raise DamagedAdapterError(
            f"{path} is not the file that its {CONFIG_NAME} was saved with: its SHA-256 is {fingerprint(data)}, "
            f"expected {config.weights_sha256}; a save was interrupted or files were mixed: save or download the "
            f'adapter again. If you changed the weights yourself, set "{FINGERPRINT}" to null in {CONFIG_NAME}'
        )
    entries = {key: Entry(tuple(tensor.shape), tensor.dtype.is_floating_point) for key, tensor in tensors.items()}
    return path, entries


def _locate(source: str, subfolder: str | None, download_kwargs: dict[str, Any]) -> str | None:
    folder = os.path.join(source, subfolder) if subfolder else source
    path = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    if os.path.isfile(path):
        return path
    if os.path.isdir(folder):
        if os.path.isfile(os.path.join(folder, WEIGHTS_NAME)):
            raise _pickle_refusal(folder)
        return None
    try:
        return hf_hub_download(source, SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **download_kwargs)
    except LocalEntryNotFoundError:  # no connection, and not in the cache
        return None
    except EntryNotFoundError as error:
        name = f"{subfolder}/{WEIGHTS_NAME}" if subfolder else WEIGHTS_NAME
        asked = {key: download_kwargs.get(key) for key in ("revision", "token")}
        if file_exists(source, name, **asked):
            raise _pickle_refusal(source) from error
        return None


def _pickle_refusal(place: str) -> DamagedAdapterError:
    return DamagedAdapterError(
        f"{place} holds {WEIGHTS_NAME}, expected {SAFETENSORS_WEIGHTS_NAME}: a pickle can run code when it is opened, "
        "and is not read. If you trust its origin, convert it once: safetensors.torch.save_file("
        f"torch.load('{WEIGHTS_NAME}', weights_only=True), '{SAFETENSORS_WEIGHTS_NAME}')"
    )


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
        if tensors[key].dtype not in FLOATS:
            raise DamagedAdapterError(
                f"{key} in {path} has type {tensors[key].dtype}, expected one of {', '.join(map(str, FLOATS))}; "
                "save or download the adapter again"
            )
    for head in heads:
        if not any(key.startswith(head) for key in tensors):
            raise DamagedAdapterError(f"{path} lacks the tensors of the head {head!r}; save or download it again")
    # PEFT 0.18 also writes the prompts of all other adapters on the model, under their names; no loader reads them.
    others = tuple(f"{PREFIX}{BANK}.{name}." for name in PARAMETERS)
    surplus = [key for key in tensors if key not in expected and not key.startswith((*heads, *others))]
    if surplus:
        raise DamagedAdapterError(
            f"{path} holds tensors that do not belong to this adapter: {', '.join(sorted(surplus)[:5])}; expected are "
            f"{', '.join(sorted(expected))}" + (f" and those of {', '.join(heads)}" if heads else "")
        )
