# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Which names an adapter can have.

PEFT stores an adapter's tensors in containers by its name, and finds them again, when it saves, by looking for the
name between the dots of their keys. Names that break one of the two fail late, or drop tensors of other adapters.
"""

from collections.abc import Iterable

from torch import nn

from ..errors import AdapterNameError
from ..files.checkpoint import PREFIX
from ..files.layout import BANK, PARAMETERS

BASE = "__base__"  # in PEFT's mixed batches: no adapter


def check_adapter_name(name: str, model: nn.Module, heads: Iterable[str]) -> None:
    """Refuse a name that PEFT could not save or load on `model`, whose saved modules are `heads`.

    Raises:
        AdapterNameError: the name is empty, holds a dot or PEFT's prefix of this method, is reserved, is an attribute
            of the containers, or is a part of the keys of the tensors that are saved.
    """
    fault = None
    if not isinstance(name, str) or not name or "." in name:
        fault = "a string without dots and with at least one character is needed"
    elif name == BASE:
        fault = "in a mixed batch it stands for the base model"
    elif hasattr(nn.ParameterDict(), name) or hasattr(nn.ModuleDict(), name):
        fault = "it is an attribute of the PyTorch containers that hold adapters by name"
    elif f"{BANK}_" in name:
        fault = f"PEFT finds the prompts among all tensors by '{BANK}_' in their keys"
    elif name in _parts_of_saved_keys(model, heads):
        fault = "it is a part of the keys that PEFT saves, and PEFT tells adapters apart by such parts"
    if fault is not None:
        raise AdapterNameError(f"the adapter name {name!r} cannot be used: {fault}; choose another, such as 'pets'")


def _parts_of_saved_keys(model: nn.Module, heads: Iterable[str]) -> set[str]:
    own = [f"{PREFIX}{BANK}.{name}" for name in PARAMETERS]
    keys = [key.replace(".original_module.", ".") for key in model.state_dict() if ".modules_to_save." not in key]
    saved = [key for key in keys if any(f".{head}." in f".{key}" for head in heads)]
    return {"modules_to_save", "original_module"}.union(*(key.split(".") for key in own + saved))
