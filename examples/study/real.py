# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The rows of docs/benchmark.md, trained again from what their records say.

A record holds the rates and the block that were chosen for its run. `ROWS` holds what else the row fixes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gated_prompt import GatedPromptConfig, initialize_prompts

from .records import Record
from .tasks import Task
from .training import Loop, accuracy, fit, groups, reader, start_head

BATCH, WARMUP = 20, 1.0
GATE_INIT = -3.0
START_IMAGES = 200  # that prompts start from, if they start from images
METHODS: Mapping[str, Mapping[str, Any]] = {  # what each fixes in the configuration
    "shallow": {"gates": False, "temperature": False},
    "deep": {"deep": True, "temperature": False},
    "gate_only": {"gates": True, "temperature": False},
    "temperature_only": {"gates": False, "temperature": True},
    "gated": {"gates": True, "temperature": True},
    "zero": {"deep": True, "zero_start": True, "temperature": False, "prompt_dropout": 0.0},
}


@dataclass(frozen=True)
class Row:
    """One line of the tables.

    Attributes:
        method: One of `METHODS`, "lora" or "full".
        insert_at: The block that prompts enter. None: half-way to the block that is read.
        fitted: The head starts as the probe of the features with the untrained prompts in place.
        start: Method of `initialize_prompts`. None: random initialization.
        prompts: How many. For deep and zero-start prompts, in each block.
        rank: Of LoRA.
    """

    method: str
    insert_at: int | None = 0
    fitted: bool = False
    start: str | None = None
    prompts: int = 10
    rank: int = 8


ROWS: Mapping[str, Row] = {
    **{name: Row(name) for name in METHODS},
    "shallow_at_2": Row("shallow", insert_at=2),
    "shallow_at_4": Row("shallow", insert_at=4),
    "lora8": Row("lora"),
    "full": Row("full"),
    "gated_start_best": Row("gated", fitted=True),
    "gated_start_sample_best": Row("gated", fitted=True, start="sample"),
    "gated_start_sample_half_best": Row("gated", fitted=True, start="sample", insert_at=None),
    "deep_start_sample_best": Row("deep", fitted=True, start="sample"),
    "zero_start_best": Row("zero", fitted=True),
    "lora4_start_best": Row("lora", fitted=True, rank=4),
    "lora8_start_best": Row("lora", fitted=True),
}


def build(row: Row, task: Task, backbone: Path, read_from: int, seed: int) -> nn.Module:
    """The model as it starts, but for a fitted head."""
    torch.manual_seed(seed)
    model = reader(backbone, [read_from], task.num_classes)
    nn.init.normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    if row.method == "full":
        return model
    if row.method == "lora":
        targets = ["q_proj", "v_proj"]
        config = LoraConfig(r=row.rank, lora_alpha=row.rank, target_modules=targets, modules_to_save=["classifier"])
        return get_peft_model(model, config)
    entry = (read_from + 1) // 2 if row.insert_at is None else row.insert_at
    settings: dict[str, Any] = {"num_virtual_tokens": row.prompts, "insert_at": entry, "gate_init": GATE_INIT}
    adapted = get_peft_model(model, GatedPromptConfig(**settings, **METHODS[row.method]))
    if row.start is not None:
        batches = [task.parts["train"].batch(index) for index in torch.arange(START_IMAGES).split(50)]
        initialize_prompts(adapted, batches, method=row.start, seed=seed)
    return adapted


def execute(record: Record, l2: float, task: Task, backbone: Path, seed: int) -> Record:
    """Train the row of a record again, with another seed. `l2` is the penalty of a fitted head."""
    row = ROWS[record["row"]]
    model = build(row, task, backbone, record["read_from"], seed)
    train, val, test = (task.parts[part] for part in ("train", "val", "test"))
    if row.fitted:
        start_head(model, train, l2)
    begin = time.process_time()
    curve = [accuracy(model, val)] if row.fitted else []
    loop = Loop(record["epochs"], WARMUP, BATCH, seed)
    losses = fit(
        model,
        groups(model, record["rate"], record["head_rate"]),
        train,
        loop,
        lambda _: curve.append(accuracy(model, val)),
    )
    settings = {key: record[key] for key in ("row", "epochs", "rate", "gate_rate", "head_rate", "read_from")}
    return {
        "kind": "run",
        **settings,
        "seed": seed,
        "val": curve[-1],
        "test": accuracy(model, test),
        "curve": curve,
        "losses": losses,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }
