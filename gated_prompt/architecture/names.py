# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Check adapter names.

PEFT keeps the tensors of an adapter in containers under its name, finds them for saving by that name between the dots
of their keys, and saves the adapter in a subfolder of that name. A name that does not suit one of these uses fails
late, drops tensors of other adapters, or makes PEFT write outside the given folder.
"""

import re
import unicodedata
from collections.abc import Iterable

from torch import nn

from ..errors import AdapterNameError
from ..files.layout import BANK, PARAMETERS, PREFIX

BASE = "__base__"  # means no adapter in PEFT's mixed batches
NO_FOLDER = re.compile(r'[/\\:*?"<>|]|^ | \Z')  # forbidden on some operating system
LONGEST = 200  # bytes of a folder name. File systems allow 255
DEVICES = {"con", "nul", "prn", "aux", *(f"{d}{i}" for d in ("com", "lpt") for i in "123456789¹²³")}  # of Windows


def check_adapter_name(name: str, model: nn.Module, heads: Iterable[str]) -> None:
    """Refuse a name under which PEFT could not save or load an adapter of `model`. `heads`: the saved modules.

    Raises:
        AdapterNameError: the name is empty, contains a dot or this method's prefix, is reserved, is not a valid folder
            name on every system, is an attribute of the containers, or is a component of the keys of saved tensors.
    """
    fault = None
    if not isinstance(name, str) or not name or "." in name:
        fault = "expected a nonempty string without dots"
    elif name == BASE:
        fault = "in a mixed batch it means the base model"
    elif not _names_a_folder(name):
        fault = (
            "the adapter is saved in a folder of this name, which must not contain slashes, backslashes, any of "
            f':*?"<>|, spaces at its ends or unprintable characters, nor exceed {LONGEST} bytes'
        )
    elif name.casefold() in DEVICES:
        fault = "the adapter is saved in a folder of this name, which is a device on Windows"
    elif twin := next((other for other in _present(model) if other != name and _meet(other, name)), None):
        fault = f"it and {twin!r} are one folder on file systems that ignore case or normalize Unicode"
    elif hasattr(nn.ParameterDict(), name) or hasattr(nn.ModuleDict(), name):
        fault = "it is an attribute of the PyTorch containers that hold adapters by name"
    elif f"{BANK}_" in name:
        fault = f"PEFT finds the prompts among all tensors by '{BANK}_' in their keys"
    elif name in _parts_of_saved_keys(model, heads):
        fault = "it is a component of the keys that PEFT saves, and PEFT distinguishes adapters by such components"
    if fault is not None:
        shown = repr(name) if len(repr(name)) <= LONGEST else f"{repr(name)[:LONGEST]}..."
        raise AdapterNameError(f"the adapter name {shown} cannot be used: {fault}. Choose another, such as 'pets'.")


def _names_a_folder(name: str) -> bool:
    if not name.isprintable() or NO_FOLDER.search(name):  # lone surrogates and NUL are not printable
        return False
    return len(name.encode()) <= LONGEST


def _meet(first: str, second: str) -> bool:
    """Whether macOS or Windows would put both names in one folder."""
    one, other = (unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", n).casefold()) for n in (first, second))
    return one == other


def _present(model: nn.Module) -> Iterable[str]:
    """Names of the adapters that the model has."""
    bank = getattr(model, BANK, None)
    return () if bank is None else bank.adapters


def _parts_of_saved_keys(model: nn.Module, heads: Iterable[str]) -> set[str]:
    own = [f"{PREFIX}{BANK}.{name}" for name in PARAMETERS]
    keys = [key.replace(".original_module.", ".") for key in model.state_dict() if ".modules_to_save." not in key]
    saved = [key for key in keys if any(f".{head}." in f".{key}" for head in heads)]
    return {"modules_to_save", "original_module"}.union(*(key.split(".") for key in own + saved))
