# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One adapter or probe as a row of an engine: a safetensors file of its own, read without torch."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import AdapterMismatchError, DamagedAdapterError
from ..files.layout import GATE_LOGITS, HEAD_GATES, TEMPERATURES, TOKENS, TOKENS_A, TOKENS_B
from ..predictor import MOST_PIXELS, Predictor
from ..serving.contents import read_files
from ..serving.resident import Limits, blocks_read
from .run import EngineError
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
    blocks = blocks_read(folder, files, Limits(backbone_name, depth, MOST_PIXELS))
    found = {key.rsplit(".", 1)[-1]: tensor.float() for key, tensor in files.prompts.items()}
    if TOKENS_A in found:
        found[TOKENS] = found.pop(TOKENS_A) @ found.pop(TOKENS_B)
    weight, bias = files.head
    tensors = {name: found[key] for name, key in KINDS.items() if key in found}
    tensors |= {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdapterMismatchError(f"{name} of the adapter in {folder} is not finite. Train it again.")
    return Task(files.predictor, structure_of(files.config, files.predictor, blocks, depth), tensors)


def convert(adapter: Path, name: str, path: Path, about: dict[str, Any]) -> Path:
    """Write the file at `path` of an adapter or probe, for the engine of which `engine.json` says `about`.

    `name`: what messages call it.

    Raises:
        GatedPromptError: the adapter was trained on another backbone or is of another structure.
    """
    task = read_task(adapter, about["backbone"], about["depth"])
    Structure(**about["structure"]).check(task.structure, name, about["depth"])
    return write_task(path, task, about)


def as_row(task: Task, about: dict[str, Any]) -> dict[str, Tensor]:
    """Its tensors, in the shapes that `about` has for its engine. Only the number of classes is its own.

    In blocks that are the engine's and not its own, prompts add nothing and the head has zeros.

    Raises:
        AdapterMismatchError: a tensor has another shape than the engine's.
    """
    structure, depth, classes = Structure(**about["structure"]), about["depth"], len(task.predictor.names)
    shapes = {name: tuple(shape) for name, shape in about["shapes"].items()}
    shapes |= {"weight": (classes, about["features"]), "bias": (classes,)}
    given = dict(task.tensors)
    if structure.pads:
        before = task.structure.span(depth)[0] - structure.span(depth)[0]
        for name in KINDS.keys() & shapes.keys():
            whole = torch.ones(shapes[name]) if name == "temperatures" else torch.zeros(shapes[name])
            own = given.get(name, whole[:0])
            if own.shape[1:] == whole.shape[1:] and (not len(own) or 0 <= before <= len(whole) - len(own)):
                whole[before : before + len(own)] = own
                given[name] = whole
    if structure.blocks is not None and task.structure.blocks is not None:
        given["weight"] = _spread(given["weight"], task.structure.blocks, structure.blocks)
    for name, shape in shapes.items():
        found = tuple(given[name].shape) if name in given else None
        if found != shape:
            raise AdapterMismatchError(
                f"{name} has the shape {found}, but the engine takes {shape}. It belongs to another backbone."
            )
    return {name: given[name] for name in shapes}


def _spread(weight: Tensor, own: list[int], blocks: list[int]) -> Tensor:
    """A head (C, F) on its own blocks, as one on all `blocks`, with zeros for the others."""
    parts = dict(zip(own, weight.chunk(len(own), dim=1), strict=True))
    nothing = torch.zeros_like(parts[own[0]])
    return torch.cat([parts.get(block, nothing) for block in blocks], dim=1)


def place_of(engine: str | os.PathLike[str], name: str) -> Path:
    """The file of a task in an engine's folder."""
    return Path(engine) / FOLDER / f"{name}{SUFFIX}"


def write_task(path: Path, task: Task, about: dict[str, Any]) -> Path:
    """Write the file of a task, for the engine of which `engine.json` says `about`, atomically. Returns its path."""
    told = {
        "names": task.predictor.names,
        "problem": task.predictor.problem,
        "temperature": task.predictor.temperature,
        "backbone_sha256": about["backbone_sha256"],
        "structure": asdict(task.structure),
    }
    row = as_row(task, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        values = {key: tensor.detach().float().cpu().contiguous().clone() for key, tensor in row.items()}
        save_file(values, partial, {"task": json.dumps(told, ensure_ascii=False)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@contextmanager
def runtime_errors() -> Iterator[None]:
    """Raise the errors of `run.py`, which knows no others, as the package's."""
    try:
        yield
    except EngineError as error:
        raise DamagedAdapterError(str(error)) from error
