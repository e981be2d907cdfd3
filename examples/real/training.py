# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One training run: a cell of the grid in, its numbers out."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import TensorDataset
from transformers import get_cosine_schedule_with_warmup

import gated_prompt
from gated_prompt import GatedPromptConfig, initialize_head, initialize_prompts
from gated_prompt.training.token_cache import StartAtBlock, prefix_tokens

from .grid import FITTED_HEAD, ROWS, Cell, Row
from .images import Part, Task
from .propagated import start_propagated
from .reader import Reader

BATCH = 20
GATE_INIT = -3.0
START_IMAGES = 200  # that prompts start from, where they start from images
METHODS: dict[str, dict[str, Any]] = {  # what each fixes in the configuration
    "shallow": {"gates": False, "temperature": False},
    "deep": {"deep": True, "temperature": False},
    "gate_only": {"gates": True, "temperature": False},
    "temperature_only": {"gates": False, "temperature": True},
    "gated": {"gates": True, "temperature": True},
    "zero": {"deep": True, "zero_start": True, "temperature": False, "prompt_dropout": 0.0},
}


@dataclass(frozen=True)
class Bench:
    """What the cells of one task share: images, backbone, the block to read after, rate and probe of the head."""

    task: Task
    backbone: Path
    read: int
    head_rate: float
    strength: float
    in_bfloat16: bool = True


def build(row: Row, bench: Bench, seed: int) -> nn.Module:
    """The model as it starts."""
    torch.manual_seed(seed)
    model = Reader(bench.backbone, bench.read, bench.task.num_classes, row.attentive, bench.in_bfloat16)
    if row.method in METHODS:
        settings = METHODS[row.method]
        config = GatedPromptConfig(
            num_virtual_tokens=row.prompts, insert_at=row.entry(bench.read), gate_init=GATE_INIT, **settings
        )
        adapted = get_peft_model(model, config)
        if row.start is not None:
            train = bench.task.parts["train"]
            batches = [train.batch(index) for index in torch.arange(START_IMAGES).split(50)]
            if row.start == "propagate":
                start_propagated(adapted, batches, seed)
            else:
                initialize_prompts(adapted, batches, method=row.start, seed=seed)
        return adapted
    if row.method == "lora":
        return get_peft_model(
            model,
            LoraConfig(
                r=row.rank, lora_alpha=row.rank, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]
            ),
        )
    return model


def groups(model: nn.Module, cell: Cell, bench: Bench) -> list[dict[str, Any]]:
    """Optimizer groups: the head with its own rate, the gates where they have one, and the rest."""
    members: dict[str, list[nn.Parameter]] = {"head": [], "gates": [], "other": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_gate = "gate_logits" in name or "head_gates" in name
            members["head" if "classifier" in name else "gates" if is_gate else "other"].append(parameter)
    share = FITTED_HEAD if ROWS[cell.row].head_start else 1.0
    rates = {"head": share * bench.head_rate, "gates": cell.gate_rate or cell.rate, "other": cell.rate}
    return [{"params": params, "lr": rates[kind]} for kind, params in members.items() if params]


def start_head(model: nn.Module, bench: Bench) -> None:
    """Set the head to the probe of what it reads with the prompts in place, as they are now."""
    train = bench.task.parts["train"]
    index = torch.arange(len(train.labels)).split(100)
    initialize_head(model, ((train.batch(i), train.labels[i]) for i in index), l2=1 / bench.strength)


@torch.no_grad()
def predict(model: nn.Module, part: Part, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (N, classes), from tokens that were kept or from the pixels."""
    model.eval()
    logits = []
    for index in torch.arange(len(part.labels)).split(100):
        logits.append(model(part.batch(index) if tokens is None else tokens[index]))
    return torch.cat(logits)


def scores(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    return round(float((logits.argmax(1) == labels).float().mean()), 5), round(
        float(F.cross_entropy(logits, labels)), 5
    )


def execute(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Train, and score on the validation images after each epoch; on the test images at the end of a final cell."""
    row = ROWS[cell.row]
    model = build(row, bench, cell.seed)
    if row.head_start:
        start_head(model, bench)
    train, val = bench.task.parts["train"], bench.task.parts["val"]
    entry = row.entry(bench.read)
    start, kept = StartAtBlock(model, entry), {}
    if entry:
        kept = {name: keep_prefix(model, start, bench.task.parts[name]) for name in ("train", "val")}
        start.open()
    parameters = groups(model, cell, bench)
    results: dict[str, Any] = {"read": bench.read, "head_rate": parameters[0]["lr"], "rate": cell.rate}
    results |= {"gate_rate": cell.gate_rate, "seed": cell.seed, "epochs": cell.epochs}
    optimizer = torch.optim.Adam(parameters)
    steps = -(-len(train.labels) // BATCH)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps, cell.epochs * steps)
    draw = torch.Generator().manual_seed(cell.seed)
    losses, curve, spent = [], [], 0.0
    best = Best() if row.head_start and cell.is_final else None
    if row.head_start:
        curve.append(scores(predict(model, val, kept.get("val")), val.labels))
    if best is not None:
        best.keep(model, 0, curve[-1][0])
    for _ in range(cell.epochs):
        model.train()
        begin, total = time.process_time(), 0.0
        for index in torch.randperm(len(train.labels), generator=draw).split(BATCH):
            logits = model(kept["train"][index] if kept else train.batch(index))
            loss = F.cross_entropy(logits, train.labels[index])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(loss.detach()) * len(index) / len(train.labels)
        spent += time.process_time() - begin
        losses.append(round(total, 4))
        curve.append(scores(predict(model, val, kept.get("val")), val.labels))
        if best is not None:
            best.keep(model, len(losses), curve[-1][0])
    results["val"], results["val_loss"] = curve[-1]
    start.close()
    if cell.is_final:
        test = bench.task.parts["test"]
        results["test"], results["test_loss"] = scores(predict(model, test), test.labels)
        if best is not None:
            results["best_epoch"] = at_best_epoch(model, bench, best)
    results |= {"curve": [accuracy for accuracy, _ in curve], "losses": losses, **learned(model, row)}
    results["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    results["train_cpu_seconds"] = round(spent, 1)
    return results


class Best:
    """The epoch with the best validation accuracy, the earliest of equals; epoch 0 is the start."""

    def __init__(self) -> None:
        self.epoch, self.accuracy = -1, -1.0
        self.tensors: dict[str, torch.Tensor] = {}

    def keep(self, model: nn.Module, epoch: int, accuracy: float) -> None:
        """Copy what is trained where this epoch is better than those before."""
        if accuracy > self.accuracy:
            self.epoch, self.accuracy = epoch, accuracy
            self.tensors = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def at_best_epoch(model: nn.Module, bench: Bench, best: Best) -> dict[str, Any]:
    """The model with the weights of its best epoch."""
    test = bench.task.parts["test"]
    model.load_state_dict(best.tensors, strict=False)
    accuracy = scores(predict(model, test), test.labels)[0]
    return {"epoch": best.epoch, "val": best.accuracy, "test": accuracy}


def keep_prefix(model: nn.Module, start: StartAtBlock, part: Part) -> torch.Tensor:
    """What enters the block that prompts enter, for all images; nothing before it learns."""
    images = TensorDataset(part.batch(torch.arange(len(part.labels))), part.labels)
    model.eval()
    with torch.no_grad():
        return torch.cat([tokens for tokens, _ in prefix_tokens(model, start, images, 100)])


def learned(model: nn.Module, row: Row) -> dict[str, list[float]]:
    """Gates and temperatures after training, where there are any."""
    if row.method == "zero":
        return {"gates": [round(float(size), 4) for size in gated_prompt.head_gates(model).abs().mean(1)]}
    if row.method not in METHODS or row.method in ("deep", "shallow"):
        return {}
    read = {"gates": gated_prompt.gates(model).tolist(), "temperatures": gated_prompt.temperatures(model).tolist()}
    return {name: [round(float(value), 4) for value in values] for name, values in read.items()}
