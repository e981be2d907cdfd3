# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Gated visual prompt tuning for Vision Transformers, as a PEFT method.

Importing this package registers the method `GATED_PROMPT` with PEFT. `get_peft_model`, `PeftModel` and the rest
of PEFT then work as with any other method.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import REMOVED, RemovedNameError

__version__ = "0.3.0"

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
    "export_engine",
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


def _is_the_command() -> bool:
    """Whether this process is `gated-prompt` or `python -m gated_prompt`.

    It reads its options before it imports torch and PEFT, which take seconds, and then registers the method itself.
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # Python is still looking for the module that it was asked to run
        words = sys.orig_argv
        return words[words.index("-m") + 1] == __name__ if "-m" in words[:-1] else False
    return os.path.splitext(os.path.basename(program))[0] == "gated-prompt"


if TYPE_CHECKING or not _is_the_command():
    from ._public import (
        AdapterMismatchError,
        AdapterNameError,
        ArchitectureError,
        AveragedAdapter,
        AveragingCallback,
        CheckError,
        Classifier,
        ConfigError,
        ConversionError,
        DamagedAdapterError,
        DataError,
        GatedPromptConfig,
        GatedPromptError,
        GatedPromptModel,
        GateRecorder,
        Pruning,
        UnknownSettingError,
        UnsupportedOperationError,
        check,
        find_head_names,
        find_vision_transformer,
        gates,
        has_prompts,
        head_gates,
        initialize_head,
        initialize_prompts,
        load,
        load_classifier,
        model_card,
        parameter_groups,
        prune,
        pruning,
        push_to_hub,
        save,
        selection_ratios,
        temperatures,
        write_card,
    )


if TYPE_CHECKING:
    from .engine.export import export_engine


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in REMOVED:
        raise RemovedNameError(name)
    if name == "export_engine":  # not imported with the rest, as it brings the server's parts along
        return import_module("gated_prompt.engine.export").export_engine
    if name in __all__:  # of the command: everything else is there already
        from . import _public

        return getattr(_public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
