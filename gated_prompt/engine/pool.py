# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""An engine behind the server: its graph runs on onnxruntime, and its tasks are loaded when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import GatedPromptError
from ..files.adapter_file import stamp_of
from ..predictor import MOST_PIXELS
from ..serving.cache import AdapterCache, Loaded, Stamp
from ..serving.settings import Settings
from . import run
from .task_file import runtime_errors
from .task_folder import TaskFolder, predictor_of, sha256_of


@dataclass(eq=False, kw_only=True)
class LoadedTask(Loaded):
    """A task of an engine in memory."""

    task: run.Adapter


class EnginePool(AdapterCache[LoadedTask]):
    """An engine and the most recently used of its tasks. `AdapterPool` is the same on PyTorch.

    A batch stacks the tensors of its own tasks, so it takes the same time however many tasks are in memory.

    Args:
        folder: what `gated-prompt export --engine` wrote.
        memory: bytes that all tasks together may take.
        image_side: the largest side of images that the engine may ask for, in pixels.
        threads: number of threads that compute. 0 means one for each core.
        graph: name of the file with the graph.

    Raises:
        GatedPromptError: the folder is not an engine, or onnxruntime refuses its graph.

    Example:
        ```python
        from pathlib import Path
        from gated_prompt.engine.pool import EnginePool

        gated_prompt.export_engine("engine", "backbone", {"birds": "me/birds", "cars": "me/cars"})
        pool = EnginePool(Path("engine"), memory=2**30)
        with pool.hold(Path("engine/adapters/birds.safetensors")) as birds:
            logits = pool.logits(pixel_values[:1], [birds])
        ```
    """

    def __init__(
        self, folder: Path, memory: int, image_side: int = MOST_PIXELS, threads: int = 0, graph: str = run.GRAPH
    ) -> None:
        super().__init__(memory)
        with runtime_errors():
            self.engine = run.Engine(folder, graph, threads)
        preparation = self.engine.about["preparation"]
        side = max(preparation.get(name, 0) for name in ("size", "resize"))
        if side > image_side:
            raise GatedPromptError(
                f"the engine in {folder} asks for images with sides of {side} pixels. The limit is {image_side}. "
                "Raise --image_side."
            )
        self._tried: set[str] = set()  # SHA-256 of tasks that have computed an image, which each does once

    def logits(self, pixels: Tensor, adapters: Sequence[LoadedTask]) -> list[Tensor]:
        """Return logits (K_i,) of each image of `pixels` (B, 3, H, W) from its own task, in one mixed batch.

        Raises:
            GatedPromptError: the graph does not compute.
        """
        with runtime_errors():
            found = self.engine.mixed(pixels.numpy(), [one.task for one in adapters])
        return [torch.from_numpy(row) for row in found]

    def _stamp(self, place: Path) -> Stamp:
        return (stamp_of(place),)

    def _load(self, place: Path, stamp: Stamp) -> LoadedTask:
        with runtime_errors():
            task = run.read_adapter(place, self.engine.about)
        nbytes = sum(tensor.nbytes for tensor in task.tensors.values())
        predictor, sha256 = predictor_of(place, task.about, self.engine.about), sha256_of(place)
        self._keep(place, nbytes, lambda: None)
        found = LoadedTask(task=task, predictor=predictor, sha256=sha256, nbytes=nbytes, stamp=stamp)
        if sha256 not in self._tried:
            self._try(found)
            self._tried.add(sha256)
        return found


def load_engine(settings: Settings) -> tuple[TaskFolder, EnginePool]:
    """The tasks of the engine that `settings` name, and what computes them.

    Raises:
        GatedPromptError: it cannot be used, or onnxruntime is not installed.
    """
    folder = Path(settings.engine)
    tasks = TaskFolder(folder, changes=bool(settings.allow))
    threads = max(1, int(settings.cpus))
    return tasks, EnginePool(folder, int(settings.memory_mb * 1e6), settings.image_side, threads)


def build(args: dict[str, Any]) -> Any:
    """The application for `serve run`, as `serving.http.build` makes it, of an engine."""
    from ..serving.http import Server

    server: Any = Server
    return server.bind(args, load_engine)
