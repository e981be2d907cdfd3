# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a training step of each row costs: seconds on one thread, and megabytes that it keeps for the backward pass.

    python examples/real_backbone.py cost

One step is forward and backward of 20 images at 98 pixels; the median of `STEPS` after one to warm up. Both read-outs
are measured: after the last block, and after block `BEST`. Nothing else should run on the machine meanwhile.
"""

import json
import platform
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gated_prompt.training.token_cache import StartAtBlock

from . import images, records
from .grid import LAST, ROWS
from .training import BATCH, Bench, build, keep_prefix

STEPS = 5
BEST = 6
CLASSES = 10
MEASURED = ("shallow", "deep", "gated", "lora8", "zero", "gated_attentive", "shallow_at_6", "full")


def kept_bytes(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes of all tensors that one forward keeps for its backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held: list[torch.Tensor] = []  # a storage that is freed could be given to the next tensor

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        F.cross_entropy(model(inputs), labels)
    return sum(kept.values())


def measure(row: str, read: int, backbone: Path) -> dict[str, Any]:
    """Median seconds, megabytes and trained numbers of one row."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 3, images.SIDE, images.SIDE), dtype=torch.uint8, generator=generator)
    part = images.Part(pixels, torch.randint(0, CLASSES, (BATCH,), generator=generator))
    task = images.Task("none", {}, CLASSES)
    model = build(ROWS[row], Bench(task, backbone, read, 0.0, 0.0), seed=0).train()
    inputs, start = part.batch(torch.arange(BATCH)), StartAtBlock(model, ROWS[row].entry(read))
    if ROWS[row].entry(read):
        inputs = keep_prefix(model, start, part)
        start.open()
        model.train()
    seconds = []
    for _ in range(STEPS + 1):
        begin = time.process_time()
        F.cross_entropy(model(inputs), part.labels).backward()
        seconds.append(time.process_time() - begin)
        model.zero_grad()
    return {
        "seconds": round(median(seconds[1:]), 4),
        "megabytes": round(kept_bytes(model, inputs, part.labels) / 1e6, 1),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def main(args: Namespace) -> None:
    """Measure all rows and write the result."""
    steps = {f"{row} read{read}": measure(row, read, args.backbone) for row in MEASURED for read in _reads(row)}
    content = {"torch": torch.__version__, "machine": platform.machine(), "steps": steps}
    records.write(records.path_of(args.results, "cost", "steps"), content)
    print(json.dumps(steps, indent=1))


def _reads(row: str) -> Iterable[int]:
    return (LAST,) if ROWS[row].entry(BEST) >= BEST or row == "full" else (LAST, BEST)
