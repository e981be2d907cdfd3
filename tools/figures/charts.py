# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Draws the charts of the pages from committed results and adapters.

python tools/figures/charts.py
"""

import json
import sys
from dataclasses import replace
from math import exp
from pathlib import Path
from statistics import mean, median, stdev

sys.path.append(str(Path(__file__).parent))
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples")]
from safetensors.torch import load_file

import study_results
from drawing import IMAGES
from gated_prompt.files.layout import GATE_LOGITS, TEMPERATURES
from miniature_page import sweep
from plotting import Panel, bars, lines
from serving_load.plan import BACKBONES
from serving_load.tables import NAMES, axis, middle, read, rounds
from study.miniature import BACKBONES as MINI_BACKBONES
from study.miniature import BLOCKS
from study.tasks import MINIATURE, REAL

EXAMPLES = Path(__file__).parents[2] / "examples"
ADAPTERS = Path(__file__).parents[2] / "tests" / "serving" / "adapters"


def adapters_by_block() -> str:
    """What three small adapters with gated prompts have learned: digits, objects and shapes."""
    opened, sharpened, config = {}, {}, {}
    for folder in sorted(ADAPTERS.iterdir()):
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        found = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items()}
        opened[folder.name] = dict(enumerate(found[GATE_LOGITS].sigmoid().tolist(), config["insert_at"]))
        sharpened[folder.name] = dict(enumerate(found[TEMPERATURES].tolist(), config["insert_at"]))
    panels = [
        Panel(opened, 0.05, "gate", level=("start", 1 / (1 + exp(-config["gate_init"])))),
        Panel(sharpened, 1, "temperature", level=("start", config["temperature_init"])),
    ]
    return lines("Gates and temperatures of trained adapters by block", "block", "", panels)


def accuracy_by_block() -> str:
    """Logistic regression on the features of each block of a real backbone."""
    found = study_results.read("real")
    probes = {task: study_results.the(found, task, "probe")["test"] for task in REAL}
    series = {task: {block: 100 * v for block, v in enumerate(values)} for task, values in probes.items()}
    title = "Accuracy of a linear classifier by block"
    return lines(title, "read after block", "test accuracy, %", [Panel(series, 10)])


CURVES = {
    "gated_start_best": "gated, random start",
    "gated_start_sample_best": 'gated, "sample" start',
    "zero_start_best": "zero-start prompts",
    "lora8_start_best": "LoRA, rank 8",
}


def accuracy_by_epoch() -> str:
    """Training from a fitted head on EuroSAT, read after the chosen block: means over the seeds that are there."""
    found = study_results.read("real")
    series = {}
    for row, label in CURVES.items():
        curves = [run["curve"] for run in study_results.final_runs("eurosat", row, found)]
        if curves:
            series[label] = {epoch: 100 * mean(seeds) for epoch, seeds in enumerate(zip(*curves, strict=True))}
    level = "logistic regression", 100 * max(study_results.the(found, "eurosat", "probe")["val"])
    title = "EuroSAT: validation accuracy by epoch"
    return lines(title, "epoch", "validation accuracy, %", [Panel(series, 5, level=level)])


def accuracy_by_insertion() -> str:
    """What VPT-shallow gains or loses by insertion after block 0, on the tasks where every block was run."""
    found = study_results.read("miniature")
    panels = []
    for backbone in MINI_BACKBONES:
        sweeps = {task: sweep(backbone, task, found) for task in MINIATURE}
        whole = {task: blocks for task, blocks in sweeps.items() if len(blocks) == len(BLOCKS)}
        gains = {task: {k: mean(v) - mean(blocks[0]) for k, v in blocks.items()} for task, blocks in whole.items()}
        spread = {task: {k: stdev(v) for k, v in blocks.items() if len(v) > 1} for task, blocks in whole.items()}
        panels.append(Panel(gains, 2, backbone, spread, level=("at block 0", 0.0)))
    reach = [value for panel in panels for value in panel.extent]  # both on one scale
    title = "Test accuracy of VPT-shallow by the block that prompts enter, minus that at block 0"
    panels = [replace(panel, reach=reach) for panel in panels]
    return lines(title, "block that prompts enter", "gain in test accuracy, points", panels)


def requests_by_tasks() -> str:
    """Requests that the server answers to 8 clients, by the number of tasks."""
    found = read(EXAMPLES / "serving_load" / "results")
    panels = []
    for (name, backbone), step in zip(BACKBONES.items(), (20, 2), strict=True):
        series = {}
        for contender, label in NAMES.items():
            visits = {tasks: rounds(found[name], contender, tasks, 8) for tasks in axis(found[name], "tasks")}
            series[label] = {tasks: middle(some, "per_second") for tasks, some in visits.items() if some}
        panels.append(Panel(series, step, backbone.label, reach=[0]))
    return lines("Requests per second of 8 clients by number of tasks", "tasks", "requests per second", panels)


SPEED = {
    "plain": "frozen ViT, nothing trained",
    "lora": "LoRA, rank 8",
    "gated": "gated prompts",
    "pruned": "gated prompts, pruned",
    "deep": "VPT-deep",
    "research": "usual code of gated prompts",
    "research_deep": "usual code of VPT-deep",
}


def throughput() -> str:
    """Images per second of ViT-S with 100 prompts."""
    table = json.loads((EXAMPLES / "speed/results/cpu.json").read_text())["tables"]["small-100"]
    panels = {
        heading: {label: 8 / median(table[kind][name]) for name, label in SPEED.items()}
        for kind, heading in (("train_step", "training, images/s"), ("forward", "inference, images/s"))
    }
    return bars("Images per second in training and inference", panels, marked=("gated", "VPT"))


def pictures() -> dict[Path, str]:
    """Text of the files."""
    return {
        IMAGES / "adapters.svg": adapters_by_block(),
        IMAGES / "block_accuracy.svg": accuracy_by_block(),
        IMAGES / "real_epochs.svg": accuracy_by_epoch(),
        IMAGES / "miniature.svg": accuracy_by_insertion(),
        IMAGES / "serving.svg": requests_by_tasks(),
        IMAGES / "throughput.svg": throughput(),
    }


if __name__ == "__main__":
    for target, svg in pictures().items():
        target.write_text(svg, encoding="utf-8")
