# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Make PEFT know the method `GATED_PROMPT`.

`peft.PeftType` is a closed enum of strings and `register_peft_method` refuses names that are not in it, so the
member is added first. Both steps do nothing when they were done before or when PEFT ships the name itself.
"""

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

NAME = "GATED_PROMPT"


def add_peft_type(name: str) -> PeftType:
    """Return `PeftType[name]`, adding it to the enum if it is missing.

    The tables written here are those that `EnumType` itself fills for a member of the class body.
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
