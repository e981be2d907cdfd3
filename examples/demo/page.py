# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The demo page as a folder that any file server can serve: web/, an engine, examples and onnxruntime-web."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from gated_prompt import GatedPromptError, export_engine
from gated_prompt.errors import DataError
from gated_prompt.sharing.classifier import used_folder
from gated_prompt.shipped import SHIPPED_BACKBONE

from . import onnxruntime_web

HERE = Path(__file__).parent
WEB, ADAPTERS, SAMPLES = HERE / "web", HERE / "adapters", HERE / "samples"
PAGE = Path("runs") / "web"
CONTENT = "content.json"  # what the page lists, as a file server does not
EXAMPLES = {  # file -> what it shows. The first is there when the page opens
    "digit-2.png": "a scanned 2",
    "digit-5.png": "a scanned 5",
    "digit-6.png": "a scanned 6",
    "square.png": "a square",
    "cross.png": "a cross",
    "star.png": "a star",
}


def load_collection(folder: Path = ADAPTERS) -> dict[str, Path]:
    """By name, the adapter or probe in each subfolder of `folder`: of the output of `train`, what the run said to use.

    Raises:
        GatedPromptError: there is none, or a run has not finished.
    """
    found = {path.name: used_folder(path) for path in sorted(folder.glob("*")) if path.is_dir()}
    if not found:
        raise DataError(f"{folder} holds no adapters. Give one with a subfolder for each adapter.")
    return found


def build_page(adapters: Mapping[str, Path], target: Path = PAGE, backbone: Path | str = SHIPPED_BACKBONE) -> Path:
    """Write the page into `target`, which is replaced, and return it.

    Raises:
        GatedPromptError: an adapter cannot be shown beside the others, `target` is another folder, or
            onnxruntime-web cannot be fetched.
    """
    if target.exists() and not (target / CONTENT).is_file():
        raise GatedPromptError(f"{target} exists and is not a page of an earlier build. Give another folder.")
    libraries = onnxruntime_web.fetch()
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(WEB, partial)
        shutil.copytree(libraries, partial / "onnxruntime")
        shutil.copytree(SAMPLES, partial / "examples")
        export_engine(partial / "engine", str(backbone), adapters)
        _optimise(partial / "engine" / "engine.onnx")
        (partial / CONTENT).write_text(json.dumps(_content(adapters), indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _optimise(graph: Path) -> None:
    """Fuse operations of a graph here rather than in each visitor's browser, where that would take a second."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(graph.with_suffix(".optimised"))
    options.log_severity_level = 3  # that a fused graph may not run everywhere is known
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    graph.with_suffix(".optimised").replace(graph)


def _content(adapters: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    tasks = [
        {"name": name, "file": f"engine/adapters/{name}.safetensors", "measured": measured(path / "README.md")}
        for name, path in adapters.items()
    ]
    return {"tasks": tasks, "examples": [{"file": f"examples/{file}", "label": EXAMPLES[file]} for file in EXAMPLES]}


def measured(card: Path) -> str | None:
    """What a model card says of the accuracy, such as "97.5 % on its validation part". None: nothing."""
    if not card.is_file():
        return None
    for result in ModelCard.load(card).data.eval_results or []:
        if result.metric_type == "accuracy":
            return f"{100 * result.metric_value:.1f} % on its {result.dataset_split} part"
    return None
