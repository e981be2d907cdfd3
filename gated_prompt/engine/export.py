# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Export an engine: a folder with one ONNX graph, a file for each adapter, and a program that runs them.

engine.onnx            inputs pixel_values, rows and the adapters' tensors; output scores
engine.json            what the graph takes, and how images become pixels
adapters/NAME.safetensors   one per task. A task is added by adding a file
run.py                 classifies images with numpy, pillow, onnxruntime and safetensors
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..architecture import find_vision_transformer
from ..errors import AdapterNameError, GatedPromptError
from ..files.folder import replace_text
from ..serving.backbone import load_backbone
from ..serving.pool import AdapterPool
from ..sharing.card import last_part
from . import run
from .graph import Engine
from .structure import Structure, joined
from .task_file import FOLDER, convert, place_of, read_task, runtime_errors, write_task

GRAPH, ABOUT, PROGRAM = "engine.onnx", "engine.json", "run.py"
FORMAT, OPSET = 1, 20  # 20: the largest of booleans, in masks
TOLERANCE = 1e-4  # of scores, relative to the largest one if that is above 1
AGREEMENT = 0.99  # of int8 with float32, in the class with the best score
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")


def export_engine(
    folder: str | os.PathLike[str],
    backbone: str,
    adapters: Mapping[str, str | os.PathLike[str]],
    images: Sequence[Image.Image] = (),
    int8: bool = False,
) -> list[str]:
    """Export a backbone as one graph that takes adapters as inputs, compare it with the model, and keep it.

    Args:
        folder: folder to write, which must not exist.
        backbone: Hub id or folder, as `gated-prompt serve` takes it.
        adapters: folders by task name, of adapters with a `predictor.json` or of probes. docs/export.md says which
            can share a graph.
        images: RGB images on which the graph is compared with the model, beside noise. Needed for `int8`.
        int8: quantise the backbone's weights, if the best class stays the same for 99 % of images and tasks.

    Returns:
        What to tell the user, line by line.

    Raises:
        GatedPromptError: an adapter does not fit, its structure is another one, or the outputs differ.

    Example:
        ```python
        gated_prompt.export_engine("engine", "backbone", {"birds": "me/birds", "cars": "me/cars"})
        ```
    """
    target = Path(folder)
    _check(target, adapters, images, int8)
    model = load_backbone(backbone).eval()
    depth = len(find_vision_transformer(model).blocks)
    tasks = {name: read_task(Path(path), backbone, depth) for name, path in adapters.items()}
    structure = joined({name: task.structure for name, task in tasks.items()}, depth)
    with runtime_errors():
        run.check_preparation(structure.preparation)
    engine = Engine(model, structure)
    first = next(iter(tasks.values()))
    width = first.tensors["weight"].shape[1]
    if structure.blocks is not None and first.structure.blocks is not None:
        width = width // len(first.structure.blocks) * len(structure.blocks)
    sha256 = fingerprint(engine.features.backbone)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        about = _about(engine, structure, width, backbone, sha256)
        replace_text(partial / ABOUT, json.dumps(about, indent=2) + "\n")
        for name, task in tasks.items():
            write_task(place_of(partial, name), task, about)
        shutil.copyfile(Path(run.__file__), partial / PROGRAM)
        _write_graph(engine, structure, width, partial / GRAPH)
        lines = [_compare(partial, backbone, adapters, images)]
        if int8:
            lines.append(_keep_if_alike(partial, list(adapters), images))
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = (target / GRAPH).stat().st_size / 1e6
    each = max(file.stat().st_size for file in (target / FOLDER).iterdir()) / 1e3
    return [f"{target}: a graph of {size:.1f} MB, {len(adapters)} adapters of at most {each:.0f} kB", *lines]


def add_adapter(engine: str | os.PathLike[str], name: str, adapter: str | os.PathLike[str]) -> Path:
    """Add a task to an exported engine. Only its file is written, and the graph stays as it is.

    Args:
        engine: an exported engine.
        name: name of the task, and of its file.
        adapter: the adapter's folder.

    Returns:
        The path of the task's file.

    Raises:
        GatedPromptError: the folder is not an engine, or the adapter was trained on another backbone or has another
            structure.

    Example:
        ```python
        from gated_prompt.engine.export import add_adapter

        gated_prompt.export_engine("engine", "backbone", {"birds": "me/birds"})
        add_adapter("engine", "cars", "me/cars")
        ```
    """
    _check_name(name)
    with runtime_errors():
        about = run.read_about(Path(engine))
    return convert(Path(adapter), name, place_of(engine, name), about)


def fingerprint(backbone: torch.nn.Module) -> str:
    """SHA-256 of a backbone's parameters and buffers by name, without those of adapters on it."""
    sha = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _check(target: Path, adapters: Mapping[str, Any], images: Sequence[Any], int8: bool) -> None:
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise GatedPromptError(f"an export needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if target.exists():
        raise GatedPromptError(f"{target} exists. Give another folder, or remove it.")
    if not adapters:
        raise GatedPromptError(
            "there are no adapters. Give at least one, which determines the structure of the engine."
        )
    if int8 and not images:
        raise GatedPromptError("int8 is compared with float32 on images. Give some.")
    for name in adapters:
        _check_name(name)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise AdapterNameError(
            f"the task name {name!r} cannot be a file name. Use letters, digits, '.', '_' and '-', at most 100 of "
            "them."
        )


def _about(engine: Engine, structure: Structure, width: int, backbone: str, sha256: str) -> dict[str, Any]:
    shapes = {name: list(shape) for name, shape in engine.shapes.items()}
    return {
        "format": FORMAT,
        "backbone": last_part(backbone),
        "backbone_sha256": sha256,
        "depth": engine.features.num_blocks,
        "structure": asdict(structure),
        "preparation": structure.preparation,
        "shapes": shapes,
        "features": width,
        "opset": OPSET,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", *LIBRARIES)},
    }


def _write_graph(engine: Engine, structure: Structure, width: int, file: Path) -> None:
    import onnx

    side = structure.preparation.get("crop") or structure.preparation["size"]
    pixels, rows = torch.zeros(3, 3, side, side), torch.tensor([1, 0, 1])
    tensors = [torch.ones(2, *shape) for shape in engine.shapes.values()]
    tensors += [torch.ones(2, 5, width), torch.ones(2, 5)]
    batch, count, classes = (torch.export.Dim(name) for name in ("batch", "adapters", "classes"))
    free: list[dict[int, Any]] = [{0: count} for _ in engine.shapes]
    free += [{0: count, 1: classes}, {0: count, 1: classes}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of axes, and about what the exporter itself calls
        torch.onnx.export(
            engine,
            (pixels, rows, *tensors),
            file,
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values", "rows", *engine.names],
            output_names=["scores"],
            dynamic_shapes=({0: batch}, {0: batch}, tuple(free)),
            external_data=False,
            verbose=False,
        )
    model = onnx.load(file)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]  # the exporter notes paths of this machine there
    onnx.checker.check_model(model)
    onnx.save(model, file)


def _compare(folder: Path, backbone: str, adapters: Mapping[str, Any], images: Sequence[Image.Image]) -> str:
    """Compare the graph with the model in mixed batches of images and noise.

    Raises:
        GatedPromptError: they differ.
    """
    engine = run.Engine(folder)
    names = list(adapters)
    draw = torch.Generator().manual_seed(0)
    prepared = [torch.from_numpy(run.prepare(image, engine.about["preparation"])) for image in images[:32]]
    shape = prepared[0].shape if prepared else torch.Size(run.shape_of(engine.about["preparation"]))
    prepared += [torch.randn(shape, generator=draw) for _ in range(max(5, len(names)) - len(prepared))]
    pool = AdapterPool(load_backbone(backbone), 2**40, backbone_name=backbone)
    worst = 0.0
    for begin in range(0, len(prepared), 8):
        pixels = torch.stack(prepared[begin : begin + 8])
        chosen = [names[(begin + row) % len(names)] for row in range(len(pixels))]
        found = engine.scores(pixels.numpy(), chosen)
        with ExitStack() as stack:
            wanted = pool.logits(pixels, [stack.enter_context(pool.hold(Path(adapters[name]))) for name in chosen])
        worst = max(worst, *map(_difference, found, wanted))
    if not worst <= TOLERANCE:
        raise GatedPromptError(f"the graph's scores differ from the model's by {worst:.2g}, so it was not kept.")
    return f"scores differ from the model's by {worst:.1e} at most, on {len(prepared)} images in mixed batches"


def _difference(found: np.ndarray, wanted: Tensor) -> float:
    values = wanted.numpy()
    return float(np.abs(found - values).max() / max(1.0, np.abs(values).max()))


def quantise(engine: Path, name: str) -> Path:
    """Write, beside the graph of an engine, the same with the backbone's weights in 8 bits, as a file `name`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(engine / GRAPH, engine / name, weight_type=QuantType.QInt8, per_channel=True)
    return engine / name


def _keep_if_alike(folder: Path, names: list[str], images: Sequence[Image.Image]) -> str:
    """Replace the graph by one with weights of 8 bits, if it agrees."""
    small = quantise(folder, "int8.onnx")
    before, after = run.Engine(folder), run.Engine(folder, small.name)
    same = total = 0
    for image in images:
        pixels = run.prepare(image, before.about["preparation"])[None]
        for name in names:
            (one,), (other,) = before.scores(pixels, [name]), after.scores(pixels, [name])
            same, total = same + int(one.argmax() == other.argmax()), total + 1
    share = same / total
    if share < AGREEMENT:
        small.unlink()
        return f"int8 was not kept: the best class is the same for {share:.1%} of {total} answers, less than 99 %"
    os.replace(small, folder / GRAPH)
    return f"int8: the best class is the same for {share:.1%} of {total} answers"
