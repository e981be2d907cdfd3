# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One adapter or probe as a row of an engine: a safetensors file of its own, read without torch."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import AdapterMismatchError
from ..files.layout import GATE_LOGITS, HEAD_GATES, TEMPERATURES, TOKENS, TOKENS_A, TOKENS_B
from ..predictor import MOST_PIXELS, Predictor
from ..serving.contents import read_files
from ..serving.resident import Limits, blocks_read
from .structure import Structure, structure_of

FOLDER, SUFFIX = "adapters", ".safetensors"
KINDS = {"prompts": TOKENS, "gates": GATE_LOGITS, "temperatures": TEMPERATURES, "head_gates": HEAD_GATES}


@dataclass(frozen=True)
class Task:
    """An adapter or a probe.

    Attributes:
        predictor: its class names, problem and preparation.
        structure: what it shares with others of its engine.
        tensors: without an axis for adapters: prompts (S, P, D), gates (G,), temperatures (K,), head_gates (K, H),
            those that it has, and of its head weight (C, F) and bias (C,).
    """

    predictor: Predictor
    structure: Structure
    tensors: dict[str, Tensor]


def read_task(folder: Path, backbone_name: str, depth: int) -> Task:
    """Read what `train` or `gated_prompt.save` left in `folder`.

    Raises:
        GatedPromptError: it is damaged, was trained on another backbone, or is pruned or of a precision of its own.
    """
    files = read_files(folder, torch.device("cpu"))
    blocks = blocks_read(folder, files, Limits(backbone_name, depth, MOST_PIXELS, 2**40))
    found = {key.rsplit(".", 1)[-1]: tensor.float() for key, tensor in files.prompts.items()}
    if TOKENS_A in found:
        found[TOKENS] = found.pop(TOKENS_A) @ found.pop(TOKENS_B)
    weight, bias = files.head
    tensors = {name: found[key] for name, key in KINDS.items() if key in found}
    tensors |= {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdapterMismatchError(f"{name} of the adapter in {folder} is not finite; train it again")
    return Task(files.predictor, structure_of(files.config, files.predictor, blocks), tensors)


def as_row(task: Task, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Its tensors, with prompts that add nothing for a probe in a zero-start engine.

    Raises:
        AdapterMismatchError: a tensor has another shape than the engine's.
    """
    given = dict(task.tensors)
    for name, shape in shapes.items():
        if name not in given:
            given[name] = torch.ones(shape) if name == "temperatures" else torch.zeros(shape)
        if given[name].shape != shape:
            raise AdapterMismatchError(
                f"{name} has the shape {tuple(given[name].shape)}, the engine takes {shape}; it belongs to another "
                "backbone"
            )
    return given


def write_task(engine: Path, name: str, task: Task, row: dict[str, Tensor], backbone_sha256: str) -> Path:
    """Write the file of an adapter into an engine's folder, atomically, and return its path."""
    about = {
        "names": task.predictor.names,
        "problem": task.predictor.problem,
        "temperature": task.predictor.temperature,
        "backbone_sha256": backbone_sha256,
        "structure": asdict(task.structure),
    }
    path = engine / FOLDER / f"{name}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        values = {key: tensor.detach().float().cpu().contiguous().clone() for key, tensor in row.items()}
        save_file(values, partial, {"task": json.dumps(about, ensure_ascii=False)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
