# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Learning rates and weight decays for prompts, gates, temperatures and head apart: `parameter_groups`."""

import math
from collections.abc import Mapping
from typing import Any

from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..errors import GatedPromptError
from ..files.layout import GATE_LOGITS, TEMPERATURES, TOKENS, TOKENS_A, TOKENS_B
from ..inspect.readouts import find_adapter

GROUPS = {
    "prompts": (TOKENS, TOKENS_A, TOKENS_B),
    "gates": (GATE_LOGITS,),
    "temperatures": (TEMPERATURES,),
}
SETTINGS = ("lr", "weight_decay")
Settings = Mapping[str, float]


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    prompts: Settings | None = None,
    gates: Settings | None = None,
    temperatures: Settings | None = None,
    head: Settings | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer that hold every trainable parameter of `model` once.

    Prompts are often trained with a rate of their own, and heads with a far larger weight decay (SPT: 1e-2 for
    prompts, 0.5 for the head). `SGD(parameter_groups(model, lr=0.1, head={"weight_decay": 0.5}), momentum=0.9)`.

    Args:
        model: what `get_peft_model` returned, or anything that holds it.
        lr: learning rate of groups that have none of their own.
        weight_decay: likewise.
        prompts: `{"lr": ..., "weight_decay": ...}`, either may be missing; so are the next three.
        gates: of the gate logits.
        temperatures: of the attention temperatures.
        head: of the modules that are saved with the adapter.

    Returns:
        Dicts with "name", "params", "lr" and "weight_decay", in the order "prompts", "gates", "temperatures", "head",
        "other" (whatever else is trainable, such as LoRA layers below the prompts). Empty ones are left out.

    Raises:
        GatedPromptError: no adapter, no trainable parameters, a setting other than the two, one that is negative or
            not finite, or settings of a group that is empty.
    """
    bank, _ = find_adapter(model, None)
    names = {id(p): group for group, keys in GROUPS.items() for key in keys for p in getattr(bank, key).values()}
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    names |= {id(p): "head" for wrapper in wrappers for p in wrapper.parameters()}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in (*GROUPS, "head", "other")}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[names.get(id(parameter), "other")].append(parameter)
    asked = {"prompts": prompts, "gates": gates, "temperatures": temperatures, "head": head}
    _check(members, asked, {"lr": lr, "weight_decay": weight_decay})
    return [
        {"name": name, "params": members[name], "lr": lr, "weight_decay": weight_decay, **(asked.get(name) or {})}
        for name in members
        if members[name]
    ]


def _check(members: Mapping[str, list[nn.Parameter]], asked: Mapping[str, Settings | None], general: Settings) -> None:
    faults = [] if any(members.values()) else ["no parameter of the model is trainable; load with is_trainable=True"]
    for name, settings in {"": general, **asked}.items():
        faults += [
            f"{name} has the setting {key!r}; known are {', '.join(SETTINGS)}"
            for key in settings or {}
            if key not in SETTINGS
        ]
        faults += [
            f"{name} {key}={value!r}; a finite number, at least 0, is needed".lstrip()
            for key, value in (settings or {}).items()
            if key in SETTINGS and not _is_rate(value)
        ]
        if settings and name and not members[name]:
            faults.append(
                f"{name}={dict(settings)} is given, but nothing trainable belongs to this group; leave it out"
            )
    if faults:
        raise GatedPromptError(f"parameter_groups: {'; '.join(faults)}")


def _is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
