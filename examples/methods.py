# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The methods that the example scripts compare, and their arguments."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForImageClassification

from gated_prompt import GatedPromptConfig, GatedPromptError
from gated_prompt.architecture import find_vision_transformer
from gated_prompt.heads import find_head_names

SHIPPED_BACKBONE = Path(__file__).parent / "backbones" / "mae-cifar10-tiny"
METHODS = ("gated", "shallow", "deep", "linear", "full")
RECORDED = (  # filled in when an adapter is made, not chosen
    "num_layers",
    "hidden_size",
    "detected_prefix_tokens",
    "weights_sha256",
)


def _prompt_arguments() -> type:
    """A dataclass with every field of `GatedPromptConfig` that a user can choose, for `HfArgumentParser`.

    PEFT's own fields are left out: the parser cannot read their types.
    """
    skip = {f.name for f in dataclasses.fields(PeftConfig)} | set(RECORDED)
    changed = {
        "pooling": (str, "auto", "auto: prompts_and_patches for the shipped MAE backbone, else none; or none, "),
        "temperature_range": (list[float], [0.01, 10.0], "low and high: "),
    }
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(GatedPromptConfig):
        if field.name in skip:
            continue
        kind, default, note = changed.get(field.name, (field.type, field.default, ""))
        described = {"help": note + field.metadata["help"]}
        if isinstance(default, list):
            fields.append(
                (field.name, kind, dataclasses.field(default_factory=partial(list, default), metadata=described))
            )
        else:
            fields.append((field.name, kind, dataclasses.field(default=default, metadata=described)))
    return dataclasses.make_dataclass("PromptArguments", fields)


PromptArguments = _prompt_arguments()


def prompt_config(method: str, arguments: Any, mae_backbone: bool) -> GatedPromptConfig | None:
    """The adapter's configuration for one of `METHODS`; None for those without prompts.

    Raises:
        GatedPromptError: the method is unknown, or a setting is wrong.
    """
    if method not in METHODS:
        raise GatedPromptError(f"unknown method {method!r}; known methods: {', '.join(METHODS)}")
    if method in ("linear", "full"):
        return None
    settings = dict(vars(arguments))
    settings["pooling"] = resolve_pooling(settings["pooling"], mae_backbone)
    if method == "shallow":
        settings |= {"deep": False, "gates": False, "temperature": False}
    if method == "deep":
        settings |= {"deep": True, "temperature": False}
    return GatedPromptConfig(**settings)


def resolve_pooling(asked: str, mae_backbone: bool) -> str | None:
    """The paper's choice for MAE, whose CLS token carries little: the mean of all other tokens."""
    if asked == "auto":
        return "prompts_and_patches" if mae_backbone else None
    return None if asked == "none" else asked


def build_model(backbone: str, method: str, prompts: Any, labels: list[str]) -> torch.nn.Module:
    """The frozen backbone with prompts and head, or what the baselines `linear` and `full` train.

    Raises:
        GatedPromptError: the method is unknown, a setting is wrong, or the backbone is no ViT.
    """
    names = dict(enumerate(labels))
    try:
        model = AutoModelForImageClassification.from_pretrained(
            backbone,
            num_labels=len(labels),
            id2label=names,
            label2id={name: index for index, name in names.items()},
            ignore_mismatched_sizes=True,  # a head for other classes is replaced by a new one
            dtype="float32",
        )
    except OSError as error:
        raise GatedPromptError(
            f"cannot load --backbone {backbone!r}; give a folder with a model or a Hub id that can be reached "
            f"({str(error).splitlines()[0]})"
        ) from error
    is_mae = Path(backbone).resolve() == SHIPPED_BACKBONE.resolve()
    config = prompt_config(method, prompts, mae_backbone=is_mae)
    if config is not None:
        return get_peft_model(model, config)
    if resolve_pooling(prompts.pooling, is_mae) is not None:
        read_patches(model)
    if method == "linear":
        model.requires_grad_(False)
        for head in find_head_names(model):
            model.get_submodule(head).requires_grad_(True)
    return model


def read_patches(model: torch.nn.Module) -> None:
    """Let a head that reads token 0 see the mean of the patch tokens, as `pooling` does for prompts."""
    vit = find_vision_transformer(model)

    def pool(module: torch.nn.Module, args: Any, tokens: torch.Tensor) -> torch.Tensor:
        mean = tokens[:, vit.num_prefix_tokens :].mean(dim=1, keepdim=True)
        return torch.cat((mean, tokens[:, 1:]), dim=1)

    vit.blocks[-1].register_forward_hook(pool)
