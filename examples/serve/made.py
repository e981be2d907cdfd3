# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What is served while it is measured: backbones, and adapters of as many tasks as wanted, weights by chance."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import gated_prompt
from gated_prompt import GatedPromptConfig
from gated_prompt.sharing.predictor import Predictor
from recipe.methods import SHIPPED_BACKBONE

CLASSES = 10
GREY = {"mean": [0.5] * 3, "std": [0.5] * 3, "antialias": True}


@dataclass(frozen=True)
class Kind:
    """A backbone: the side of its pictures in pixels, and the prompts of each adapter."""

    side: int
    prompts: int
    label: str


KINDS = {
    "tiny": Kind(32, 10, "the shipped backbone, 32 pixels"),
    "small": Kind(224, 50, "ViT-S/16, 224 pixels"),
}


def backbone(kind: str, folder: Path) -> Path:
    """The shipped one, or a ViT-S/16 with weights by chance, written to `folder`."""
    if kind == "tiny":
        return SHIPPED_BACKBONE
    place = folder / "vit-small"
    if not (place / "model.safetensors").is_file():
        torch.manual_seed(0)
        config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=CLASSES)
        ViTForImageClassification(config).save_pretrained(place)
    return place


def adapters(kind: str, count: int, folder: Path) -> Path:
    """A folder with an adapter for each of `count` tasks, each as the paper's: prompts, gates, temperatures, head."""
    place, wanted = folder / f"{kind}-{count}", KINDS[kind]
    names = [place / f"t{number:02}" for number in range(count)]
    if all((name / "predictor.json").is_file() for name in names):
        return place
    base = AutoModelForImageClassification.from_pretrained(
        backbone(kind, folder), num_labels=CLASSES, ignore_mismatched_sizes=True, dtype="float32"
    )
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=wanted.prompts, gate_init=-3.0))
    torch.manual_seed(0)
    for name in names:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        gated_prompt.save(model, name)
        Predictor([f"{name.name} {one}" for one in range(CLASSES)], GREY | {"size": wanted.side}).write(name)
    return place
