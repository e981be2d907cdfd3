# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Register the method `GATED_PROMPT` with PEFT.

`register_peft_method` refuses names that are not in `peft.PeftType`, a closed enum of strings, so the member is added
first. Neither step does anything the second time, or if PEFT itself has the name.

One PEFT function is wrapped. transformers' `load_adapter` calls `PeftConfig.from_pretrained` on the base class, and
PEFT then creates a config of the right class without calling that class's own reader. This would bypass the checks of
our files and lose the location of the weights. Checking the tensors on loading would not be enough: transformers fills
the model with its own loader, which calls no hook. Without the wrapper, that path does not refuse 25 of the damaged
files in `tests/attacks/damage.py` as the others do (`tests/test_load_adapter.py`). Other methods are unaffected.
"""

import functools
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

NAME = "GATED_PROMPT"


def add_peft_type(name: str) -> PeftType:
    """Return `PeftType[name]`, adding it to the enum if it is missing.

    Fills the same tables that `EnumType` fills for members in the class body.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    hashable = getattr(PeftType, "_hashable_values_", None)  # CPython 3.12 and later
    if hashable is not None:
        hashable.append(name)
    type.__setattr__(PeftType, name, member)
    return member


def register(config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register the config and tuner classes with PEFT, once per process."""
    if add_peft_type(NAME) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls)
        _wrap_from_pretrained(config_cls)


def _wrap_from_pretrained(config_cls: type[PeftConfig]) -> None:
    read = PeftConfig.from_pretrained.__func__

    @functools.wraps(read)
    def from_pretrained(
        cls: type[PeftConfig], pretrained_model_name_or_path: str, *args: Any, **kwargs: Any
    ) -> PeftConfig:
        source = pretrained_model_name_or_path
        ours = cls is PeftConfig and _method_of(source, *args, **kwargs) == NAME
        return config_cls.from_pretrained(source, *args, **kwargs) if ours else read(cls, source, *args, **kwargs)

    PeftConfig.from_pretrained = classmethod(from_pretrained)


def _method_of(source: str, subfolder: str | None = None, **kwargs: Any) -> str | None:
    asked, _, _ = PeftConfig._split_kwargs(kwargs)
    try:
        return PeftConfig._get_peft_type(source, subfolder=subfolder, **asked)
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return None  # PEFT itself reports a missing or invalid config
