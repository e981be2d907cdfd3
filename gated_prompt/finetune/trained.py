# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Write what was trained beside `predictor.json`, for `sharing.classifier`: an adapter of PEFT, or tensors by name."""

import os
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

import gated_prompt

from ..predictor import Predictor
from ..sharing.classifier import TENSORS
from ..training.checkpoints import trained_tensors
from .reporting import has_prompts


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
