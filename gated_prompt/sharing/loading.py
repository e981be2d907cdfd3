# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Load an adapter in one line, with every fault of its files named before the model is touched."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn

from ..config import GatedPromptConfig
from ..errors import AdapterNameError, DamagedAdapterError, GatedPromptError
from ..files.folder import read_undisturbed


def load(
    base: nn.Module,
    adapter: str | os.PathLike[str],
    adapter_name: str = "default",
    is_trainable: bool = False,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> PeftModel:
    """Put a saved adapter on a model.

    This does the same as `PeftModel.from_pretrained`, or as `load_adapter` on a model that has adapters. But PEFT
    opens the config before it knows the method, asks the Hub for weights that a folder lacks, and opens the files
    again after they were checked. Here they are validated and loaded from one snapshot, even while others save.

    Args:
        base: the base model, changed in place, or a `PeftModel`, which gets one more adapter, not yet active.
        adapter: a folder, or the id of a Hub repository.
        adapter_name: its name on the model.
        is_trainable: continue training it. Otherwise its parameters need no gradient.
        subfolder: folder inside `adapter` that holds it.
        revision: branch, tag or commit of the repository.
        token: access token of the Hub. None means the one of `hf auth login`.

    Returns:
        The `PeftModel`, which is `base` itself if that was one.

    Raises:
        DamagedAdapterError: a file is missing, unreadable, incomplete, holds what it should not hold, or is a pickle.
        AdapterMismatchError: the adapter is of another PEFT method or made for another base.
        AdapterNameError: the name cannot be used, or the model has an adapter of this name.
        ConfigError: the config holds wrong values, or values that do not fit this base.

    Example:
        ```python
        model = gated_prompt.load(vit, "me/birds").eval()
        logits = model(pixel_values=pixel_values).logits
        ```
    """
    if isinstance(base, PeftModel) and adapter_name in base.peft_config:
        raise AdapterNameError(
            f"the model has an adapter named {adapter_name!r} already (it has: {', '.join(base.peft_config)}). Give "
            "another adapter_name, or remove the old one with delete_adapter."
        )
    with checked(os.fspath(adapter), subfolder, revision, token) as (config, folder):
        config.inference_mode = not is_trainable
        if not isinstance(base, PeftModel):
            return PeftModel.from_pretrained(
                base, folder, adapter_name=adapter_name, is_trainable=is_trainable, config=config
            )
        base.add_adapter(adapter_name, config)
        try:
            base.load_adapter(folder, adapter_name, is_trainable=is_trainable)
        except BaseException:
            base.delete_adapter(adapter_name)
            raise
    return base


@contextmanager
def checked(
    source: str, subfolder: str | None = None, revision: str | None = None, token: str | bool | None = None
) -> Iterator[tuple[GatedPromptConfig, str]]:
    """The config of an adapter without faults, and a folder with its weights.

    Where others may save into the adapter's folder, it is a copy that is gone afterwards: PEFT opens the weights once
    more, and must find those that were checked. Files too large for a copy are loaded from where they lie.
    """
    place = os.path.join(source, subfolder) if subfolder else source
    with tempfile.TemporaryDirectory(prefix="gated_prompt_") as copy:

        def read() -> GatedPromptConfig:
            config = read_adapter(source, subfolder, revision, token)
            if os.path.isdir(place) and config.weights_file.is_small:
                config.weights_file = config.weights_file.copy_to(Path(copy))
            return config

        config = read_undisturbed(Path(place), read)
        yield config, str(config.weights_file.folder)


def read_adapter(
    source: str, subfolder: str | None = None, revision: str | None = None, token: str | bool | None = None
) -> GatedPromptConfig:
    """The config of an adapter. One that has a fault in itself, whatever the base model is, is refused."""
    place = os.path.join(source, subfolder) if subfolder else source
    if os.path.isdir(place) and not os.path.isfile(os.path.join(place, CONFIG_NAME)):
        found = ", ".join(sorted(os.listdir(place))[:10]) or "nothing"
        raise DamagedAdapterError(
            f"{place} lacks {CONFIG_NAME}, expected beside {SAFETENSORS_WEIGHTS_NAME} (the folder holds: {found}). "
            "Give the folder that save_pretrained wrote."
        )
    try:
        config = GatedPromptConfig.from_pretrained(source, subfolder=subfolder, revision=revision, token=token)
    except GatedPromptError:
        raise
    except (OSError, ValueError) as error:  # PEFT turns every failure of the Hub into a ValueError
        raise DamagedAdapterError(
            f"no adapter at {place!r}: there is no such folder, and the Hub gave no {CONFIG_NAME} "
            f"({error.__cause__ or error}). Check the path, or the repository id and the connection."
        ) from error
    config.check_weights_were_there()
    return config
