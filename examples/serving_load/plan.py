# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What is compared, for how long and how often, and what is served: a backbone, and random adapters."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from peft import get_peft_model
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import gated_prompt
from gated_prompt import GatedPromptConfig, export_engine
from gated_prompt.engine.export import add_adapter
from gated_prompt.predictor import Predictor
from gated_prompt.shipped import SHIPPED_BACKBONE

ONE = "one"  # the gated server with a single adapter. "gated" serves 64 and is asked for some or all of them
CONTENDERS = (ONE, "gated", "lora", "full")
COUNTS = [1, 4, 16, 64]
SECONDS = {"tiny": 5.0, "small": 10.0}  # of each visit of a cell
ROUNDS = {"tiny": (6, 3), "small": (5, 2)}  # of one adapter and of 64, which decide, and of all other cells


class Cell(NamedTuple):
    """A contender with this many tasks, asked by this many clients."""

    contender: str
    tasks: int
    clients: int

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.contender} {self.tasks} {self.clients}"

    @property
    def decides(self) -> bool:
        """Whether the goal is about it."""
        return self.contender == ONE or (self.contender, self.tasks) == ("gated", max(COUNTS))


def cells(backbone: str) -> Iterator[Cell]:
    """All cells of a backbone. A ViT-S/16 answers 32 clients so slowly that only the deciding pair is asked."""
    counts = {ONE: COUNTS[:1], "gated": COUNTS[1:], "lora": COUNTS, "full": COUNTS}
    if backbone == "small":
        counts |= {name: [COUNTS[0], COUNTS[-1]] for name in ("lora", "full")}
    for clients in (1, 8, 32):
        for contender in CONTENDERS:
            for tasks in counts[contender]:
                cell = Cell(contender, tasks, clients)
                if cell.decides or backbone == "tiny" or clients < 32:
                    yield cell


def visits(backbone: str) -> Iterator[tuple[int, Cell]]:
    """Rounds and their cells: each round visits every cell once, so a slow minute of the machine hits all alike."""
    deciding, others = ROUNDS[backbone]
    for number in range(deciding):
        for cell in cells(backbone):
            if cell.decides or number < others:
                yield number, cell


def options(backbone: str, contender: str, folder: Path) -> dict[str, object]:
    """Options of the server of a contender."""
    count = 1 if contender == ONE else max(COUNTS)
    return {"backbone": backbone_folder(backbone, folder), "adapters": adapters(backbone, count, folder)}


CLASSES = 10
GREY = {"mean": [0.5] * 3, "std": [0.5] * 3}


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


def backbone_folder(name: str, folder: Path) -> Path:
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
        backbone_folder(name, folder), num_labels=CLASSES, ignore_mismatched_sizes=True, dtype="float32"
    )
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=wanted.prompts, gate_init=-3.0))
    torch.manual_seed(0)
    for task in tasks:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        gated_prompt.save(model, task)
        sides = {"resize": wanted.side, "crop": wanted.side}
        Predictor([f"{task.name} {one}" for one in range(CLASSES)], GREY | sides).write(task)
    return place


def engine(name: str, count: int, folder: Path) -> Path:
    """The same adapters as tasks of an engine."""
    place, tasks = folder / f"{name}-{count}-engine", sorted(adapters(name, count, folder).iterdir())
    if not place.is_dir():
        partial = folder / f"{place.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if count == 1:
            export_engine(partial, str(backbone_folder(name, folder)), {tasks[0].name: tasks[0]})
        else:
            shutil.copytree(engine(name, 1, folder), partial)
        for task in tasks[1:]:
            add_adapter(partial, task.name, task)
        partial.rename(place)
    return place


RUNTIMES = ("torch", "engine")


def served(runtime: str, name: str, count: int, folder: Path) -> dict[str, object]:
    """Options of a server of these adapters on PyTorch, or on onnxruntime."""
    if runtime == "engine":
        return {"engine": engine(name, count, folder)}
    return {"backbone": backbone_folder(name, folder), "adapters": adapters(name, count, folder)}
