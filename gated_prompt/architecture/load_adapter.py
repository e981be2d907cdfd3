# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Make two methods named `load_adapter` safe.

- PEFT's, into an adapter name in use, as the Trainer calls it to resume or to load the best checkpoint. PEFT does not
  read the config then, so none of our checks has seen the file, and `load_state_dict(strict=False)` would write what
  fits and skip the rest. `CheckLoadedTensors` refuses such tensors before anything is written.
- transformers', which injects an adapter into a bare model and fills it with its own loader. Some versions of that
  loader lose tensors without an error, so `fill_from_file` reads them again from the file.
"""

from collections.abc import Container, Mapping, MutableMapping
from typing import Any

import safetensors.torch
import torch
import transformers
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError, DamagedAdapterError, UnsupportedOperationError
from ..files.adapter_file import AdapterFile
from ..files.layout import BANK, PREFIX

# Observed in 5.0.0 (loads nothing) and 5.9.0 (loses trained heads); 5.17 has the same code, 5.18 maps the heads.
LOSES_ADAPTERS = (5, 0) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18)


class CheckLoadedTensors:
    """Before `load_state_dict` of the base model: refuse incomplete or wrong tensors of an adapter."""

    def __init__(self, bank: Any) -> None:
        self.bank = bank

    def __call__(self, model: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
        for name in self.bank.adapters:
            config = getattr(model, "peft_config", {}).get(name)
            own = {
                f"{prefix}{BANK}.{kind}.{name}": getattr(self.bank, kind).get(name)
                for kind in self.bank.adapter_layer_names
            }
            head = {
                f"{prefix}{path}.modules_to_save.{name}.{key}": tensor
                for path, wrapper in _heads(model, name).items()
                for key, tensor in wrapper.modules_to_save[name].state_dict().items()
            }
            if any(key in state for key in (*own, *head)):
                # PEFT does not insert the name into keys that the adapter lacks.
                _check(name, own | dict.fromkeys(key.removesuffix(f".{name}") for key in own) | head, state, own)
                if config is not None:
                    check_is_the_file_that_was_read(config)
                for key in head.keys() & state.keys():  # with low_cpu_mem_usage, PEFT assigns without casting
                    state[key] = state[key].to(head[key].dtype)
                # The gates that decided which blocks to prune are replaced.
                self.bank.adapters[name] = self.bank.adapters[name].pruned(())


def _check(name: str, expected: Mapping[str, Any], state: Mapping[str, Any], needed: Container[str]) -> None:
    """Compare the tensors of one adapter in `state` with the model's. `expected` maps keys it lacks to None."""
    advice = "The adapter on the model is unchanged. Save or download the other one again."
    for key, tensor in expected.items():
        found = state.get(key)
        if found is None:
            if tensor is not None and key in needed:
                raise DamagedAdapterError(f"the tensors to load into adapter {name!r} lack {key}. {advice}")
        elif tensor is None:
            raise AdapterMismatchError(
                f"the tensors to load into adapter {name!r} include {key}, which this adapter does not have. Load an "
                "adapter with other settings under a new name."
            )
        elif found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
            raise AdapterMismatchError(
                f"{key} has shape {tuple(tensor.shape)}, type {tensor.dtype}, but the tensor to load has shape "
                f"{tuple(found.shape)}, type {found.dtype}. Load that adapter under a new name, or on its own base."
            )
        elif found.is_floating_point() and not found.is_meta and not torch.isfinite(found).all():
            raise DamagedAdapterError(f"the tensor to load into {key} has NaN or infinite values. {advice}")


def check_is_the_file_that_was_read(config: GatedPromptConfig) -> None:
    """Check that the weights file was not replaced between reading `config` and reading the tensors.

    Raises:
        DamagedAdapterError: it was replaced, so settings and tensors may come from different adapters.
    """
    file, config.weights_file = config.weights_file, AdapterFile("")  # tensors loaded later come from another file
    if file.is_replaced:
        raise DamagedAdapterError(
            f"{file.path} was replaced while it was being loaded. Load the base again, and the adapter with "
            "gated_prompt.load, which waits until no other process saves."
        )


def check_can_be_loaded(config: GatedPromptConfig) -> None:
    """Refuse to inject an adapter into a bare model if transformers would lose its tensors.

    Raises:
        UnsupportedOperationError: the tensors would be lost, and `fill_from_file` cannot restore them.
        DamagedAdapterError: the config was read from a folder without weights.
    """
    if config.inference_mode:
        config.check_weights_were_there()
    if LOSES_ADAPTERS and config.inference_mode is (config.weights_file.path is None):
        raise UnsupportedOperationError(
            f"load_adapter of transformers {transformers.__version__} loses tensors of adapters with "
            f"{'adapter_state_dict' if config.inference_mode else 'is_trainable=True'}. Use gated_prompt.load(model, "
            "folder, is_trainable=True), or transformers 5.18 or later. To start a new adapter, use a config "
            "that was not read from the folder of another."
        )


def fill_from_file(model: nn.Module, name: str, config: GatedPromptConfig) -> None:
    """Fill an adapter that was injected into a bare model from the file that its config was read with.

    Only in inference mode, which transformers' `load_adapter` sets: otherwise it may be a new adapter that reuses the
    settings of an old one.
    """
    if not config.inference_mode or config.weights_file.path is None:
        return
    tensors, bank = safetensors.torch.load_file(config.weights_file.path), getattr(model, BANK)
    check_is_the_file_that_was_read(config)
    for kind in bank.adapter_layer_names:
        if name in getattr(bank, kind):
            getattr(bank, kind)[name].data.copy_(tensors[f"{PREFIX}{BANK}.{kind}"])
    for head, wrapper in _heads(model, name).items():
        start = f"{PREFIX}{head}."
        values = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        wrapper.modules_to_save[name].load_state_dict(values)


def _heads(model: nn.Module, name: str) -> dict[str, ModulesToSaveWrapper]:
    """Return the trained heads of one adapter by path."""
    wrappers = {path: module for path, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    return {path: wrapper for path, wrapper in wrappers.items() if name in wrapper.modules_to_save}
