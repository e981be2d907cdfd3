# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What is served during a measurement: a backbone, and random adapters for any number of tasks."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import gated_prompt
from gated_prompt import GatedPromptConfig
from gated_prompt.predictor import Predictor
from gated_prompt.shipped import SHIPPED_BACKBONE

CLASSES = 10
GREY = {"mean": [0.5] * 3, "std": [0.5] * 3, "antialias": True}


@dataclass(frozen=True)
class Backbone:
    """A backbone: the side of its images in pixels, the prompts of each adapter, and what tables call it."""

    side: int
    prompts: int
    label: str


BACKBONES = {
    "tiny": Backbone(32, 10, "the shipped backbone, 32 pixels"),
    "small": Backbone(224, 50, "ViT-S/16, 224 pixels"),
}


def backbone(name: str, folder: Path) -> Path:
    """The folder of the shipped backbone, or of a ViT-S/16 with random weights, written below `folder`."""
    if name == "tiny":
        return SHIPPED_BACKBONE
    place = folder / "vit-small"
    if not (place / "model.safetensors").is_file():
        torch.manual_seed(0)
        config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=CLASSES)
        ViTForImageClassification(config).save_pretrained(place)
    return place


def adapters(name: str, count: int, folder: Path) -> Path:
    """A folder with `count` random adapters with the paper's parts: prompts, gates, temperatures and head."""
    place, wanted = folder / f"{name}-{count}", BACKBONES[name]
    tasks = [place / f"t{number:02}" for number in range(count)]
    if all((task / "predictor.json").is_file() for task in tasks):
        return place
    base = AutoModelForImageClassification.from_pretrained(
        backbone(name, folder), num_labels=CLASSES, ignore_mismatched_sizes=True, dtype="float32"
    )
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=wanted.prompts, gate_init=-3.0))
    torch.manual_seed(0)
    for task in tasks:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        gated_prompt.save(model, task)
        Predictor([f"{task.name} {one}" for one in range(CLASSES)], GREY | {"size": wanted.side}).write(task)
    return place
