# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What an optimizer trains, in groups with their own rates, for every method and head."""

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import nn

from ..architecture import find_head_names
from ..errors import GatedPromptError
from ..inspect.readouts import has_prompts
from .optim import parameter_groups as prompt_groups


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, own: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Everything that `model` trains as optimizer groups, by `gated_prompt.parameter_groups` where it has prompts.

    Elsewhere there are two groups, "head" and "other". `own` holds settings of single groups: `{"head": {"lr": 0.5}}`.

    Raises:
        GatedPromptError: a group that the model does not train has settings of its own.
    """
    if has_prompts(model):
        return prompt_groups(model, lr=lr, weight_decay=weight_decay, **own)
    heads = find_head_names(model.get_base_model() if isinstance(model, PeftModel) else model)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "head" if any(f".{head}." in f".{name}" for head in heads) else "other"
            groups.setdefault(kind, []).append(parameter)
    strangers = [kind for kind, settings in own.items() if settings and kind not in groups]
    if strangers:
        raise GatedPromptError(f"{', '.join(strangers)} have settings of their own, but none are trained here")
    return [
        {"name": kind, "params": params, "lr": lr, "weight_decay": weight_decay, **own.get(kind, {})}
        for kind, params in groups.items()
    ]
