# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What each of the methods in `recipe` trains of a model."""

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForImageClassification

from ..architecture import find_head_names, find_vision_transformer
from ..config import GatedPromptConfig
from ..errors import GatedPromptError
from ..sharing.backbone import check_backbone
from ..shipped import SHIPPED_BACKBONE
from .recipe import PROMPT_METHODS, check_method

BACKBONE_KINDS = ("auto", "mae", "moco", "other")
HEAD_INITS = ("model", "kaiming", "probe")
VALUE_NAMES = {"q_proj": "v_proj", "query": "value", "qkv": "qkv"}  # by the name of the query projection


def prompt_config(method: str, arguments: Any, mae_backbone: bool) -> GatedPromptConfig | None:
    """The adapter's configuration for one of `METHODS`. None for those without prompts.

    Raises:
        GatedPromptError: the method is unknown, or a setting is wrong.
    """
    check_method(method)
    if method not in PROMPT_METHODS:
        return None
    settings = {**vars(arguments), **PROMPT_METHODS[method]}
    pooling = resolve_pooling(settings["pooling"], mae_backbone)
    if settings["pooling"] == "auto" and pooling is not None and settings["zero_start"]:
        pooling = "patches"  # these prompts never leave a block
    return GatedPromptConfig(**{**settings, "pooling": pooling})


def backbone_kind(backbone: str, asked: str = "auto") -> str:
    """'mae', 'moco' or 'other': as asked, else by the last part of the name ('facebook/vit-mae-base', 'mocov3-vit-b').

    Raises:
        GatedPromptError: no such kind is known, or the shipped backbone is called something else than 'mae'.
    """
    if asked not in BACKBONE_KINDS:
        raise GatedPromptError(f"unknown --backbone_kind {asked!r}. Choose from: {', '.join(BACKBONE_KINDS)}.")
    name = Path(backbone).name.lower()
    hits = [kind for kind, form in (("mae", r"(?<![a-z])mae(?![a-z])"), ("moco", r"moco")) if re.search(form, name)]
    kind = hits[0] if len(hits) == 1 else "other"
    if asked == "auto":
        return kind
    if asked != "mae" and Path(backbone).resolve() == SHIPPED_BACKBONE.resolve():
        raise GatedPromptError(f"--backbone_kind {asked} contradicts --backbone: the shipped one is mae")
    return asked


def resolve_pooling(asked: str, mae_backbone: bool) -> str | None:
    """The paper's choice for MAE, whose CLS token carries little: the mean of all other tokens."""
    if asked == "auto":
        return "prompts_and_patches" if mae_backbone else None
    return None if asked == "none" else asked


def build_model(
    backbone: str,
    method: str,
    prompts: Any,
    labels: list[str],
    *,
    kind: str = "auto",
    lora_r: int = 8,
    head_init: str = "model",
) -> nn.Module:
    """The frozen backbone with prompts and head, or what the methods without prompts train.

    `kind` is one of `BACKBONE_KINDS`, `lora_r` the rank of LoRA. `head_init` is 'model', the initial head that
    transformers makes, 'kaiming', that of the official code, or 'probe', which needs images later and makes that of
    'model' here.

    Raises:
        GatedPromptError: the method is unknown, a setting is wrong, or the backbone is no ViT.
    """
    is_mae = backbone_kind(backbone, kind) == "mae"
    config = prompt_config(method, prompts, mae_backbone=is_mae)
    check_backbone(backbone)
    names = dict(enumerate(labels))
    try:
        model = AutoModelForImageClassification.from_pretrained(
            backbone,
            num_labels=len(labels),
            id2label=names,
            label2id={name: index for index, name in names.items()},
            ignore_mismatched_sizes=True,  # a new head replaces one for other classes
            dtype="float32",
        )
    except OSError as error:
        raise GatedPromptError(
            f"cannot load --backbone {backbone!r}. Give a folder with a model or a Hub id that can be reached "
            f"({str(error).splitlines()[0]})."
        ) from error
    except ValueError as error:  # raised for a model without such a class, such as DINOv3
        raise GatedPromptError(
            f"transformers has no image classifier for --backbone {backbone!r} ({str(error).splitlines()[0]}). Give "
            "another backbone, or use gated-prompt train, which adds its own head."
        ) from error
    initialize_heads(model, head_init)
    if config is None and resolve_pooling(prompts.pooling, is_mae) is not None:
        read_patches(model)
    return adapt(model, method, config, lora_r)


def adapt(model: nn.Module, method: str, config: GatedPromptConfig | None, lora_r: int) -> nn.Module:
    """Add what one of `METHODS` trains to a model with a head, and freeze the rest. `config`: see `prompt_config`.

    Raises:
        GatedPromptError: a setting does not fit the model.
    """
    if config is not None:
        return get_peft_model(model, config)
    if method == "lora":
        return add_lora(model, lora_r)
    if method == "linear":
        model.requires_grad_(False)
        for head in find_head_names(model):
            model.get_submodule(head).requires_grad_(True)
    return model


def initialize_heads(model: nn.Module, how: str) -> None:
    """Start the classification heads as one of `HEAD_INITS` says.

    'kaiming' is the official code's: normal with variance 2 / classes. Its bias, one constant for all classes, changes
    nothing under a softmax and is 0 here.

    Raises:
        GatedPromptError: there is no such initialisation.
    """
    if how not in HEAD_INITS:
        raise GatedPromptError(f"unknown --head_init {how!r}. Choose from: {', '.join(HEAD_INITS)}.")
    if how == "kaiming":
        for head in map(model.get_submodule, find_head_names(model)):
            for linear in (m for m in head.modules() if isinstance(m, nn.Linear)):
                nn.init.kaiming_normal_(linear.weight, mode="fan_out")
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """PEFT's LoRA, with its defaults, on the query and value projections of all blocks. The head is trained too.

    Raises:
        GatedPromptError: the rank is below 1, or the model has no value projections by the names that are known.
    """
    if rank < 1:
        raise GatedPromptError(f"--lora_r is {rank}. Expected at least 1.")
    inside = {id(m) for block in find_vision_transformer(model).blocks for m in block.modules()}
    modules = dict(model.named_modules())
    queries = [n for n, m in modules.items() if id(m) in inside and n.rpartition(".")[2] in VALUE_NAMES]
    values = [f"{n.rpartition('.')[0]}.{VALUE_NAMES[n.rpartition('.')[2]]}" for n in queries]
    missing = [name for name in values if name not in modules]
    if missing:
        raise GatedPromptError(f"--method lora finds no value projection {missing[0]!r} in {type(model).__name__}")
    targets = sorted({*queries, *values})
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, modules_to_save=find_head_names(model))
    )


def read_patches(model: nn.Module) -> None:
    """Let a head that reads token 0 see the mean of the patch tokens, as `pooling` does for prompts."""
    vit = find_vision_transformer(model)

    def pool(module: nn.Module, args: Any, tokens: torch.Tensor) -> torch.Tensor:
        mean = tokens[:, vit.num_prefix_tokens :].mean(dim=1, keepdim=True)
        return torch.cat((mean, tokens[:, 1:]), dim=1)

    vit.blocks[-1].register_forward_hook(pool)
