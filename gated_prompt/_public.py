# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What `import gated_prompt` gives. Importing it registers the method with PEFT."""

from .architecture import find_head_names, find_vision_transformer
from .config import GatedPromptConfig
from .errors import (
    AdapterMismatchError,
    AdapterNameError,
    ArchitectureError,
    ConfigError,
    ConversionError,
    DamagedAdapterError,
    DataError,
    GatedPromptError,
    RemovedNameError,
    UnknownSettingError,
    UnsupportedOperationError,
)
from .inspect.check import CheckError, check
from .inspect.pruning import Pruning, prune, pruning
from .inspect.readouts import gates, has_prompts, head_gates, selection_ratios, temperatures
from .registration import register
from .sharing.card import model_card, write_card
from .sharing.classifier import Classifier, load_classifier
from .sharing.hub import push_to_hub
from .sharing.loading import load
from .sharing.saving import save
from .starts.head import initialize_head
from .starts.initialize import initialize_prompts
from .training.averaging import AveragedAdapter, AveragingCallback
from .training.optim import parameter_groups
from .training.recorder import GateRecorder
from .tuner.model import GatedPromptModel

__all__ = [
    "AdapterMismatchError",
    "AdapterNameError",
    "ArchitectureError",
    "AveragedAdapter",
    "AveragingCallback",
    "CheckError",
    "Classifier",
    "ConfigError",
    "ConversionError",
    "DamagedAdapterError",
    "DataError",
    "GateRecorder",
    "GatedPromptConfig",
    "GatedPromptError",
    "GatedPromptModel",
    "Pruning",
    "RemovedNameError",
    "UnknownSettingError",
    "UnsupportedOperationError",
    "check",
    "find_head_names",
    "find_vision_transformer",
    "gates",
    "has_prompts",
    "head_gates",
    "initialize_head",
    "initialize_prompts",
    "load",
    "load_classifier",
    "model_card",
    "parameter_groups",
    "prune",
    "pruning",
    "push_to_hub",
    "save",
    "selection_ratios",
    "temperatures",
    "write_card",
]

register(GatedPromptConfig, GatedPromptModel)
