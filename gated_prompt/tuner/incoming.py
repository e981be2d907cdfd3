# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Tensors of an adapter that come in by other ways than a new adapter of a `PeftModel`.

- `load_adapter` of PEFT into a name in use, as the Trainer does when it resumes or takes the best checkpoint: PEFT
  does not look at the config then, so nothing of ours has seen the file, and `load_state_dict(strict=False)` would
  write what fits and skip the rest. `CheckIncoming` refuses before anything is written.
- `load_adapter` of transformers, which injects the adapter into the bare model and then fills it with a loader of its
  own. Some versions of that loader lose tensors without an error. `fill` does not depend on it.
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
from .bank import PromptBank

# Tested in 5.0.0 (loads nothing) and 5.9.0 (no trained head); 5.17 has the same code, 5.18 maps the heads.
LOSES_ADAPTERS = (5, 0) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18)


class CheckIncoming:
    """Before `load_state_dict` of the base model: refuse tensors of an adapter that are incomplete or wrong."""

    def __init__(self, bank: PromptBank) -> None:
        self.bank = bank

    def __call__(self, model: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
        for name in self.bank.plans:
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
                # PEFT leaves the name out of keys that the adapter does not have.
                _check(name, own | dict.fromkeys(key.removesuffix(f".{name}") for key in own) | head, state, own)
                if config is not None:
                    check_is_the_file_that_was_read(config)
                for key in head.keys() & state.keys():  # PEFT assigns with low_cpu_mem_usage, which casts nothing
                    state[key] = state[key].to(head[key].dtype)
                self.bank.plans[name] = self.bank.plans[name].pruned(())  # the gates it was pruned by are gone


def _check(name: str, expected: Mapping[str, Any], state: Mapping[str, Any], needed: Container[str]) -> None:
    """Compare the tensors of one adapter in `state` with those on the model; None stands for one it does not have."""
    advice = "the adapter on the model stays as it was; save or download the other one again"
    for key, tensor in expected.items():
        found = state.get(key)
        if found is None:
            if tensor is not None and key in needed:
                raise DamagedAdapterError(f"what is loaded into adapter {name!r} lacks {key}; {advice}")
        elif tensor is None:
            raise AdapterMismatchError(
                f"what is loaded into adapter {name!r} holds {key}, which this adapter does not have; load an adapter "
                "with other settings under a name of its own"
            )
        elif found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
            raise AdapterMismatchError(
                f"{key} has shape {tuple(tensor.shape)}, type {tensor.dtype}, and what is loaded into it shape "
                f"{tuple(found.shape)}, type {found.dtype}; load it under a name of its own, or on its own base"
            )
        elif found.is_floating_point() and not found.is_meta and not torch.isfinite(found).all():
            raise DamagedAdapterError(f"what is loaded into {key} holds NaN or infinite values; {advice}")


def check_is_the_file_that_was_read(config: GatedPromptConfig) -> None:
    """Refuse tensors that were just read, if their file has been replaced since `config` was read with it.

    Raises:
        DamagedAdapterError: it has: settings and tensors may be of two adapters.
    """
    file, config._file = config._file, AdapterFile("")  # later tensors under this name come from elsewhere
    if file.is_replaced:
        raise DamagedAdapterError(
            f"{file.path} was replaced while it was being loaded; load the base again, and the adapter with "
            "gated_prompt.load, which copes with others that save"
        )


def check_can_be_filled(config: GatedPromptConfig) -> None:
    """Refuse an adapter, about to be injected into a bare model, whose tensors transformers would lose.

    Raises:
        UnsupportedOperationError: as it says, and `fill` cannot give the tensors either.
        DamagedAdapterError: the config was read from a folder without weights.
    """
    if config.inference_mode:
        config.check_weights_were_there()
    if LOSES_ADAPTERS and config.inference_mode is (config._file.path is None):
        raise UnsupportedOperationError(
            f"load_adapter of transformers {transformers.__version__} loses tensors of adapters with "
            f"{'adapter_state_dict' if config.inference_mode else 'is_trainable=True'}; use gated_prompt.load(model, "
            "folder, is_trainable=True), or transformers 5.18 or later. A new adapter needs a config that was not "
            "read from the folder of another one"
        )


def fill(model: nn.Module, name: str, config: GatedPromptConfig) -> None:
    """Give an adapter that was injected into a bare model the tensors of the file that its config was read with.

    Only in inference mode, which transformers' `load_adapter` sets: otherwise the adapter may as well be a new one
    that starts from the settings of an old one.
    """
    if not config.inference_mode or config._file.path is None:
        return
    tensors, bank = safetensors.torch.load_file(config._file.path), getattr(model, BANK)
    check_is_the_file_that_was_read(config)
    for kind in bank.adapter_layer_names:
        if name in getattr(bank, kind):
            getattr(bank, kind)[name].data.copy_(tensors[f"{PREFIX}{BANK}.{kind}"])
    for head, wrapper in _heads(model, name).items():
        start = f"{PREFIX}{head}."
        values = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        wrapper.modules_to_save[name].load_state_dict(values)


def _heads(model: nn.Module, name: str) -> dict[str, ModulesToSaveWrapper]:
    """The trained heads of one adapter by their paths."""
    wrappers = {path: module for path, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    return {path: wrapper for path, wrapper in wrappers.items() if name in wrapper.modules_to_save}
