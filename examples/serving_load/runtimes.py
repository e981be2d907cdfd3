# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""PyTorch, an engine and its 8-bit graph in one process: images per second, and how often the best class is the same.

The shipped backbone has the adapter of a run of `train`, with a head as it is used. That of ViT-S/16 is
random, so there only the time means something.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gated_prompt import GatedPromptError, export_engine
from gated_prompt.engine.export import quantise
from gated_prompt.engine.pool import EnginePool
from gated_prompt.engine.task_file import place_of
from gated_prompt.images import decode
from gated_prompt.predictor import Predictor
from gated_prompt.serving.backbone import load_backbone
from gated_prompt.serving.pool import AdapterPool
from gated_prompt.sharing.classifier import used_folder

from . import plan, records

BATCH, ROUNDS, SECONDS, MEMORY = 16, 9, {"tiny": 1.5, "small": 4.0}, 2**30
INT8 = "int8.onnx"


def main(args: Namespace) -> None:
    """Measure what is missing.

    Raises:
        GatedPromptError: there is no run, or there are no images.
    """
    path = args.results / "runtimes.json"
    results = records.read(path)
    torch.set_num_threads(1)
    photos = sorted(one for one in args.images.rglob("*") if one.is_file()) if args.images else []
    if not args.run or not photos:
        raise GatedPromptError("give --run, an output folder of train, and --images, a folder of images like its own")
    for backbone in plan.BACKBONES:
        if backbone not in results:
            folder = (
                used_folder(args.run) if backbone == "tiny" else plan.adapters("small", 1, args.output_dir) / "t00"
            )
            few = photos if backbone == "tiny" else photos[:BATCH]
            results |= {"machine": records.machine(), backbone: compared(backbone, folder, few, args)}
            print(backbone, results[backbone], flush=True)
            records.save(path, results)


def compared(backbone: str, adapter: Path, photos: Sequence[Path], args: Namespace) -> dict[str, Any]:
    """Images per second of each runtime, and the share of images with the same best class as on PyTorch."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    source = plan.backbone_folder(backbone, args.output_dir)
    engine = args.output_dir / f"{backbone}-runtimes"
    if not engine.is_dir():
        export_engine(engine, str(source), {"task": adapter})
        quantise(engine, INT8)
    pools: dict[str, tuple[Any, Path]] = {
        "torch": (AdapterPool(load_backbone(str(source)), MEMORY), adapter),
        "engine": (EnginePool(engine, MEMORY, threads=1), place_of(engine, "task")),
        "int8": (EnginePool(engine, MEMORY, threads=1, graph=INT8), place_of(engine, "task")),
    }
    with ExitStack() as stack:
        held = {name: (pool, stack.enter_context(pool.hold(place))) for name, (pool, place) in pools.items()}
        predictor: Predictor = held["torch"][1].predictor
        pixels = torch.stack([predictor.transform()(decode(photo)) for photo in photos])
        best = {name: answers(*one, pixels) for name, one in held.items()}
        batch, seconds = pixels[:BATCH], SECONDS[backbone]
        rounds = [{name: speed(*one, batch, seconds) for name, one in held.items()} for _ in range(ROUNDS)]
    return {
        "images": len(pixels),
        "per_second": {name: round(median(one[name] for one in rounds), 2) for name in held},
        "times_torch": {name: round(median(one[name] / one["torch"] for one in rounds), 3) for name in held},
        "agreement": {name: round(float((one == best["torch"]).float().mean()), 4) for name, one in best.items()},
        "megabytes": {name: round((engine / name).stat().st_size / 1e6, 1) for name in ("engine.onnx", INT8)},
    }


def answers(pool: Any, adapter: Any, pixels: Tensor) -> Tensor:
    """The best class of each image."""
    batches = pixels.split(BATCH)
    return torch.stack([row.argmax() for batch in batches for row in pool.logits(batch, [adapter] * len(batch))])


def speed(pool: Any, adapter: Any, pixels: Tensor, seconds: float) -> float:
    """Images per second, of whole batches."""
    begin, count = time.perf_counter(), 0
    while (took := time.perf_counter() - begin) < seconds:
        pool.logits(pixels, [adapter] * len(pixels))
        count += len(pixels)
    return count / took
