"""An engine of a tiny backbone, and the adapters of several structures that it was exported from."""

import json
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from peft import get_peft_model
from safetensors.torch import load_file, save_file

import gated_prompt
from gated_prompt import GatedPromptConfig
from gated_prompt.heads import TokenClassifier
from gated_prompt.predictor import Predictor
from helpers.models import vit

CROP = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "resize": 36, "crop": 32}
BLOCKS = [0, 2]
DEPTH = 3
TEMPERATURE = 1.5  # of the probabilities
ZERO = dict(num_virtual_tokens=2, deep=True, zero_start=True, insert_at=1)
EARLY = ZERO | dict(insert_at=0, read_from=1)
GATED = dict(num_virtual_tokens=3, gate_init=0.0)


def own_class(classes: int) -> torch.nn.Module:
    """The backbone with a head of its own class, whose weights depend on the number of classes."""
    model = vit(num_labels=classes, num_hidden_layers=DEPTH)
    model.load_state_dict(vit(num_labels=0, num_hidden_layers=DEPTH).state_dict(), strict=False)
    return model


def several_blocks(classes: int, blocks: list[int] = BLOCKS) -> torch.nn.Module:
    return TokenClassifier(vit(num_labels=0, num_hidden_layers=DEPTH).vit, classes, reads="both", blocks=blocks)


def write_adapter(folder: Path, classes: int, **settings: object) -> Path:
    """Random parameters. With zero start the head reads several blocks."""
    zero = "zero_start" in settings
    torch.manual_seed(classes)
    blocks = [1] if settings.get("read_from") == 1 else BLOCKS
    base = several_blocks(classes, blocks) if zero else own_class(classes)
    model = get_peft_model(base, GatedPromptConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    gated_prompt.save(model, folder)
    reads = {"reads": "both", "blocks": blocks} if zero else {}
    names = [f"{folder.name} {i}" for i in range(classes)]
    Predictor(names, CROP, temperature=TEMPERATURE, **reads).write(folder)
    return folder


def write_probe(folder: Path, classes: int) -> Path:
    folder.mkdir()
    head = several_blocks(classes).classifier
    save_file(
        {"classifier.weight": head.weight.data, "classifier.bias": head.bias.data}, folder / "trained.safetensors"
    )
    Predictor([f"{folder.name} {i}" for i in range(classes)], CROP, reads="both", blocks=BLOCKS).write(folder)
    return folder


def write_all(root: Path) -> None:
    """A backbone, and adapters of two structures."""
    vit(num_labels=0, num_hidden_layers=DEPTH).save_pretrained(root / "backbone")
    write_adapter(root / "birds", 3, **GATED)
    write_adapter(root / "cars", 5, **GATED)
    write_adapter(root / "trees", 4, **GATED)
    write_adapter(root / "cells", 3, **ZERO)
    write_adapter(root / "leaves", 2, **ZERO)
    write_adapter(root / "early", 4, **EARLY)
    write_probe(root / "probe", 6)


def export(root: Path, folder: Path, names: list[str], **more: object) -> list[str]:
    return gated_prompt.export_engine(folder, str(root / "backbone"), {name: root / name for name in names}, **more)


def written_once(place: Path) -> Path:
    """The folder of `write_all` with an engine named gated, of birds and cars: one for all processes of the tests."""
    root = place / "engines"
    with FileLock(f"{root}.lock"):
        if not (root / "gated").is_dir():
            write_all(root)
            export(root, root / "gated", ["birds", "cars"])
    return root


@torch.no_grad()
def alone(root: Path, name: str, pixels: torch.Tensor) -> np.ndarray:
    """What the usual way of loading says of one image (3, H, W)."""
    classes = len(json.loads((root / name / "predictor.json").read_text())["names"])
    if name == "probe":
        model = several_blocks(classes).eval()
        model.load_state_dict(load_file(root / name / "trained.safetensors"), strict=False)
    else:
        blocks = {"cells": BLOCKS, "leaves": BLOCKS, "early": [1]}.get(name)
        base = several_blocks(classes, blocks) if blocks else own_class(classes)
        model = gated_prompt.load(base, root / name).eval()
    return model(pixel_values=pixels[None]).logits[0].numpy()
