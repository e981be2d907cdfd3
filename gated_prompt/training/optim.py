# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Groups of parameters with their own learning rates and weight decays, for prompts and for every other method."""

import math
from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..architecture import find_head_names
from ..errors import GatedPromptError
from ..files.layout import GATE_LOGITS, HEAD_GATES, TEMPERATURES, TOKENS, TOKENS_A, TOKENS_B
from ..inspect.readouts import find_adapter, has_prompts
from ..tuner.bank import find_banks

GROUPS = {
    "prompts": (TOKENS, TOKENS_A, TOKENS_B),
    "gates": (GATE_LOGITS, HEAD_GATES),
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
    """Return groups for a torch optimizer that contain each trainable parameter of `model` once.

    Prompts often use their own learning rate, and heads a far larger weight decay (SPT uses 1e-2 for prompts and 0.5
    for the head).

    Args:
        model: the result of `get_peft_model`, or a module that contains one or several.
        lr: learning rate of groups without their own.
        weight_decay: weight decay of groups without their own.
        prompts: `{"lr": ..., "weight_decay": ...}`, both optional. The next three take the same form.
        gates: for the gate logits, and the head gates of zero start.
        temperatures: for the attention temperatures.
        head: for the modules saved with the adapter.

    Returns:
        Dicts with "name", "params", "lr" and "weight_decay", in the order "prompts", "gates", "temperatures", "head",
        "other" (all other trainable parameters, such as LoRA layers below the prompts). Empty groups are left out.

    Raises:
        GatedPromptError: the model has no adapter or no trainable parameters, a setting is unknown, negative or not
            finite, or an empty group has settings.

    Example:
        ```python
        groups = gated_prompt.parameter_groups(model, lr=0.1, head={"weight_decay": 0.5})
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        ```
    """
    banks = find_banks(model).values()
    if not banks:
        find_adapter(model, None)  # raises
    kinds = [(group, getattr(bank, key)) for bank in banks for group, keys in GROUPS.items() for key in keys]
    names = {id(parameter): group for group, tensors in kinds for parameter in tensors.values()}
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
    faults = [] if any(members.values()) else ["no parameter of the model is trainable. Load with is_trainable=True."]
    for name, settings in {"": general, **asked}.items():
        faults += [
            f"{name} has the setting {key!r}. Expected {' or '.join(SETTINGS)}."
            for key in settings or {}
            if key not in SETTINGS
        ]
        faults += [
            f"{name} {key}={value!r}. Expected a finite number of at least 0.".lstrip()
            for key, value in (settings or {}).items()
            if key in SETTINGS and not _is_rate(value)
        ]
        if settings and name and not members[name]:
            faults.append(
                f"{name}={dict(settings)} is given, but the group has no trainable parameters. Leave it out."
            )
    if faults:
        raise GatedPromptError(f"parameter_groups: {' '.join(faults)}")


def _is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def optimizer_groups(
    model: nn.Module, lr: float, weight_decay: float, own: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Everything that `model` trains as optimizer groups, by `gated_prompt.parameter_groups` where it has prompts.

    Elsewhere there are two groups, "head" and "other". `own` holds settings of single groups: `{"head": {"lr": 0.5}}`.

    Raises:
        GatedPromptError: a group that the model does not train has settings of its own.
    """
    if has_prompts(model):
        return parameter_groups(model, lr=lr, weight_decay=weight_decay, **own)
    heads = find_head_names(model.get_base_model() if isinstance(model, PeftModel) else model)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "head" if any(f".{head}." in f".{name}" for head in heads) else "other"
            groups.setdefault(kind, []).append(parameter)
    strangers = [kind for kind, settings in own.items() if settings and kind not in groups]
    if strangers:
        raise GatedPromptError(f"{', '.join(strangers)} have their own settings, but none are trained here")
    return [
        {"name": kind, "params": params, "lr": lr, "weight_decay": weight_decay, **own.get(kind, {})}
        for kind, params in groups.items()
    ]
