# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What was trained, in a folder beside `predictor.json`: an adapter of PEFT, or tensors by their names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gated_prompt

from ..errors import GatedPromptError
from ..files.header import read_config
from ..predictor import Predictor
from ..training.checkpoints import trained_tensors
from .reporting import has_prompts

TENSORS = "trained.safetensors"
HEAD = ("classifier.weight", "classifier.bias")


def save_trained(model: nn.Module, folder: Path, predictor: Predictor) -> None:
    """Write what was trained of a model that was made of `predictor.load_base()`."""
    if has_prompts(model):
        gated_prompt.save(model, folder)
    elif isinstance(model, PeftModel):
        model.save_pretrained(folder)
    else:
        save_tensors(trained_tensors(model), folder)
    predictor.write(folder)


def save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors atomically, the head's among them."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{TENSORS}.partial"
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial)
    os.replace(partial, folder / TENSORS)


def holds_prompts(folder: Path) -> bool:
    """Whether what a folder has is an adapter of gated prompts."""
    config = folder / CONFIG_NAME
    return config.is_file() and read_config(config).get("peft_type") == "GATED_PROMPT"


def load_trained(folder: Path, predictor: Predictor) -> nn.Module:
    """The model of a folder's predictor with what was trained, in eval mode.

    Raises:
        GatedPromptError: the backbone cannot be loaded, or what was trained does not fit it.
    """
    base: Any = predictor.load_base()
    if holds_prompts(folder):
        return gated_prompt.load(base, folder).eval()
    if (folder / CONFIG_NAME).is_file():
        return PeftModel.from_pretrained(base, folder).eval()
    try:
        tensors = load_file(folder / TENSORS)
        missing = [name for name in HEAD if name not in tensors]
        if missing:
            raise GatedPromptError(f"{folder / TENSORS} lacks {missing[0]}; train again")
        base.load_state_dict({**base.state_dict(), **tensors})
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise GatedPromptError(f"{folder / TENSORS} does not fit {predictor.backbone!r}: {reason}") from error
    return base.eval()
