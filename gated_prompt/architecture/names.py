# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Which names an adapter can have.

PEFT stores an adapter's tensors in containers by its name, and finds them again, when it saves, by looking for the
name between the dots of their keys; and it saves the adapter in a subfolder of its name. A name that violates one of
these rules fails late, drops tensors of other adapters, or writes outside the folder that was given.
"""

import re
from collections.abc import Iterable

from torch import nn

from ..errors import AdapterNameError
from ..files.layout import BANK, PARAMETERS, PREFIX

BASE = "__base__"  # in PEFT's mixed batches: no adapter
NO_FOLDER = re.compile(r'[/\\:*?"<>|]|^ | \Z')  # on one of today's systems
LONGEST = 200  # bytes of a folder's name; systems allow 255


def check_adapter_name(name: str, model: nn.Module, heads: Iterable[str]) -> None:
    """Refuse a name that PEFT could not save or load on `model`, whose saved modules are `heads`.

    Raises:
        AdapterNameError: the name is empty, holds a dot or PEFT's prefix of this method, is reserved, cannot name a
            folder on every system, is an attribute of the containers, or is a part of the keys of the tensors that
            are saved.
    """
    fault = None
    if not isinstance(name, str) or not name or "." in name:
        fault = "a string without dots and with at least one character is needed"
    elif name == BASE:
        fault = "in a mixed batch it stands for the base model"
    elif not _names_a_folder(name):
        fault = (
            "the adapter is saved in a folder of this name, which cannot hold slashes, backslashes, any of "
            f':*?"<>|, spaces at its ends or unprintable characters, nor more than {LONGEST} bytes'
        )
    elif hasattr(nn.ParameterDict(), name) or hasattr(nn.ModuleDict(), name):
        fault = "it is an attribute of the PyTorch containers that hold adapters by name"
    elif f"{BANK}_" in name:
        fault = f"PEFT finds the prompts among all tensors by '{BANK}_' in their keys"
    elif name in _parts_of_saved_keys(model, heads):
        fault = "it is a part of the keys that PEFT saves, and PEFT tells adapters apart by such parts"
    if fault is not None:
        shown = repr(name) if len(repr(name)) <= LONGEST else f"{repr(name)[:LONGEST]}..."
        raise AdapterNameError(f"the adapter name {shown} cannot be used: {fault}; choose another, such as 'pets'")


def _names_a_folder(name: str) -> bool:
    if not name.isprintable() or NO_FOLDER.search(name):  # lone surrogates and NUL are not printable
        return False
    return len(name.encode()) <= LONGEST


def _parts_of_saved_keys(model: nn.Module, heads: Iterable[str]) -> set[str]:
    own = [f"{PREFIX}{BANK}.{name}" for name in PARAMETERS]
    keys = [key.replace(".original_module.", ".") for key in model.state_dict() if ".modules_to_save." not in key]
    saved = [key for key in keys if any(f".{head}." in f".{key}" for head in heads)]
    return {"modules_to_save", "original_module"}.union(*(key.split(".") for key in own + saved))
