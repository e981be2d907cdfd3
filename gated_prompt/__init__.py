# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Gated visual prompt tuning for Vision Transformers, as a PEFT method.

Importing this package registers the method `GATED_PROMPT` with PEFT; `get_peft_model`, `PeftModel` and the rest
of PEFT then work as with any other method.
"""

from .card import model_card, write_card
from .config import GatedPromptConfig
from .errors import (
    AdapterMismatchError,
    AdapterNameError,
    ArchitectureError,
    ConfigError,
    DamagedAdapterError,
    GatedPromptError,
    UnsupportedOperationError,
)
from .hub import push_to_hub
from .model import GatedPromptModel
from .readouts import gates, selection_ratios, temperatures
from .registration import register

__version__ = "0.1.0"

__all__ = [
    "AdapterMismatchError",
    "AdapterNameError",
    "ArchitectureError",
    "ConfigError",
    "DamagedAdapterError",
    "GatedPromptConfig",
    "GatedPromptError",
    "GatedPromptModel",
    "UnsupportedOperationError",
    "gates",
    "model_card",
    "push_to_hub",
    "selection_ratios",
    "temperatures",
    "write_card",
]

register(GatedPromptConfig, GatedPromptModel)
