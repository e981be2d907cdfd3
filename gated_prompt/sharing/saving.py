# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Save an adapter so that a kill at any moment leaves the old one or the new one, whole.

`PeftModel.save_pretrained` writes the weights, then the config. Killed between the two it leaves a pair that does
not belong together. The fingerprint in the config tells, and the pair is refused, but the old adapter is gone.

Here everything is written aside first. Then three renames put it in place:

1. the new config, under its pending name: readers ignore it, as its fingerprint is not that of the old weights;
2. the new weights: from this moment on the pending config fits, readers take it, and the adapter is the new one;
3. the pending config, to its final name.

Processes that save into one folder wait for each other, so the adapter is that of the last.
"""

import os
import shutil
from pathlib import Path

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from ..errors import UnsupportedOperationError
from ..files.folder import PENDING_NAME, locked, replace_text
from .card import CARD_NAME, model_card

STAGING = ".gated_prompt_saving"  # inside the target, hence on the same file system. A fixed name, so no litter


def save(model: PeftModel, folder: str | os.PathLike[str]) -> None:
    """Save all adapters of `model`, in the files and places of `model.save_pretrained(folder)`, atomically.

    After a kill, each adapter is either the old or the new one. An adapter that has no model card beside it gets the
    one that `model_card` makes, in place of PEFT's template. An existing card stays as it is.

    Args:
        model: a `PeftModel` with gated prompts.
        folder: where to save. Adapters that are not named "default" go into subfolders, as in PEFT.

    Raises:
        UnsupportedOperationError: `model` is not a `PeftModel`, or `folder` is a file.
        GatedPromptError: other processes kept saving into this folder for a minute.

    Example:
        ```python
        gated_prompt.save(model, "birds")
        ```
    """
    if not isinstance(model, PeftModel):
        raise UnsupportedOperationError(
            f"save() got a {type(model).__name__}, expected a PeftModel. Adapters that transformers added are saved "
            "by the model's own save_pretrained."
        )
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UnsupportedOperationError(f"{target} is a file, expected a folder. Give another path.")
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        staging = target / STAGING
        shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
        staging.mkdir()
        try:
            model.save_pretrained(staging)
            for name in model.peft_config:
                own = Path() if name == "default" else Path(name)
                _move_in(staging / own, target / own)
                if not (target / own / CARD_NAME).is_file():
                    replace_text(target / own / CARD_NAME, str(model_card(model, adapter_name=name)))
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _move_in(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        with open(source / name, "r+b") as file:
            os.fsync(file.fileno())
    os.replace(source / CONFIG_NAME, target / PENDING_NAME)
    os.replace(source / SAFETENSORS_WEIGHTS_NAME, target / SAFETENSORS_WEIGHTS_NAME)
    os.replace(target / PENDING_NAME, target / CONFIG_NAME)
