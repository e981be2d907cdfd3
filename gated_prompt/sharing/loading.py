# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Load an adapter in one line, with every fault of its files named before the model is touched."""

import os

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn

from ..config import GatedPromptConfig
from ..errors import AdapterNameError, DamagedAdapterError, GatedPromptError


def load(
    base: nn.Module,
    adapter: str | os.PathLike[str],
    adapter_name: str = "default",
    is_trainable: bool = False,
) -> PeftModel:
    """Put a saved adapter on a model.

    The same as `PeftModel.from_pretrained`, or `load_adapter` on a model that has adapters. But PEFT opens the config
    before it knows the method, and asks the Hub for weights that a folder lacks; here both are looked at first.

    Args:
        base: the base model, changed in place; or a `PeftModel`, which gets one more adapter, not yet active.
        adapter: a folder, or the id of a Hub repository.
        adapter_name: its name on the model.
        is_trainable: go on training it; otherwise its parameters need no gradient.

    Returns:
        The `PeftModel`; where `base` was one, itself.

    Raises:
        DamagedAdapterError: a file is missing, unreadable, incomplete, holds what it should not hold, or is a pickle.
        AdapterMismatchError: the adapter is of another PEFT method or made for another base.
        AdapterNameError: the name cannot be used, or the model has an adapter of this name.
        ConfigError: the config holds wrong values, or values that do not fit this base.
    """
    source = os.fspath(adapter)
    check_adapter(source)
    if not isinstance(base, PeftModel):
        return PeftModel.from_pretrained(base, source, adapter_name=adapter_name, is_trainable=is_trainable)
    if adapter_name in base.peft_config:
        raise AdapterNameError(
            f"the model has an adapter named {adapter_name!r} already (it has: {', '.join(base.peft_config)}); give "
            "another adapter_name, or remove the old one with delete_adapter"
        )
    base.load_adapter(source, adapter_name, is_trainable=is_trainable)
    return base


def check_adapter(source: str) -> None:
    """Refuse an adapter that has a fault in itself, whatever the base model is."""
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, CONFIG_NAME)):
        found = ", ".join(sorted(os.listdir(source))[:10]) or "nothing"
        raise DamagedAdapterError(
            f"{source} lacks {CONFIG_NAME}, expected beside {SAFETENSORS_WEIGHTS_NAME} (the folder holds: {found}); "
            "give the folder that save_pretrained wrote"
        )
    try:
        config = GatedPromptConfig.from_pretrained(source)
    except GatedPromptError:
        raise
    except (OSError, ValueError) as error:  # PEFT turns every failure of the Hub into a ValueError
        raise DamagedAdapterError(
            f"no adapter at {source!r}: there is no such folder, and the Hub gave no {CONFIG_NAME} "
            f"({error.__cause__ or error}); check the path, or the repository id and the connection"
        ) from error
    config.check_weights_were_there()
