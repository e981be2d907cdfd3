# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The race: frozen and trained methods on few labelled images, under one protocol.

    python examples/study/run.py race --data_dir FOLDER --backbone FOLDER

For each draw of the labelled images, the frozen rows choose blocks and penalty by five folds. Every trained method
reads these blocks, and its head starts as their probe, fitted with the untrained adapter in place. Its rate is chosen
on one held-back fold of the first draw of `RACED_ON`. Other draws and tasks take that rate. It then starts again and
trains on all labelled images, and the test images are scored once. The held-back fold also says, on each draw, whether
training helped at all: `start` and `held` are its accuracies before and after.

A record is written when it is done, so stop at any time. A new start continues.
"""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

from gated_prompt import initialize_prompts

from . import frozen_rows, records
from .draws import Pool, folds
from .methods import Experiment, build, first_trained_block
from .training import Kept, accuracy, fit, groups, start_head

RACED_ON = "dtd10"
FROZEN = "frozen--probes.jsonl"
START_IMAGES = 200  # that prompts start from, if they start from images
REPEATS = 5  # of a timed forward


class Racer:
    """Runs experiments on the draws of one task."""

    def __init__(self, pool: Pool, results: Path) -> None:
        self.pool, self.results = pool, results

    def frozen(self, number: int) -> dict[str, records.Record]:
        """The frozen rows of a draw by name."""
        file = self.results / FROZEN
        found = [one for one in records.read(file) if (one["task"], one["draw"]) == (self.pool.name, number)]
        if not found:
            found = frozen_rows.run(self.pool, number)
            for one in found:
                records.append(file, one)
        return {one["row"]: one for one in found}

    def trained(self, experiment: Experiment, number: int) -> records.Record:
        """The record of one experiment on one draw."""
        file = self.results / experiment.results
        done = records.read(file)
        for one in done:
            if (one["task"], one["draw"]) == (self.pool.name, number):
                return one
        chosen = [one["rate"] for one in done if (one["task"], one["draw"]) == (RACED_ON, 0)]
        record = self._measure(experiment, number, chosen or experiment.training.rates)
        records.append(file, record)
        return record

    def _measure(self, experiment: Experiment, number: int, rates: Sequence[float]) -> records.Record:
        row = self.frozen(number)[experiment.training.reads]
        blocks, l2 = tuple(row["blocks"]), row["l2"]
        draw, begin = self.pool.draw(number), time.process_time()
        tokens, labels = self.pool.tokens(first_trained_block(blocks)), self.pool.labels

        def kept(index: Tensor) -> Kept:
            return Kept(tokens[index], labels[index])

        whole, test = kept(draw.labelled), kept(draw.test)
        part, held_back = (kept(draw.labelled[index]) for index in folds(whole.labels, number)[0])

        def trained(rate: float, images: Kept) -> tuple[nn.Module, float]:
            """The model, and its accuracy on the held-back images before it trains."""
            model, start = build(experiment, self.pool.backbone, blocks, self.pool.num_classes, seed=number)
            if experiment.training.start is not None:
                first = [self.pool.images.batch(index) for index in draw.labelled[:START_IMAGES].split(50)]
                initialize_prompts(model, first, method=experiment.training.start, seed=number)
            start.open()
            start_head(model, images, l2)
            before = accuracy(model, held_back)
            fit(model, groups(model, rate, experiment.training.head_rate), images, experiment.training.loop(number))
            return model, before

        tried: dict[float, float] = {}
        for rate in rates:
            model, start = trained(rate, part)
            score = accuracy(model, held_back)
            if score > max(tried.values(), default=-1.0):
                best = model
            tried[rate] = score
        rate = max(tried, key=lambda rate: tried[rate])
        refit_begin = time.process_time()
        model, _ = trained(rate, whole)
        seconds = time.process_time() - refit_begin
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        batch = whole.batch(torch.arange(experiment.training.batch_size))
        return {
            "experiment": experiment.name,
            "task": self.pool.name,
            "draw": number,
            "blocks": list(blocks),
            "rate": rate,
            "tried": {f"{rate:g}": value for rate, value in tried.items()},
            "start": start,
            "held": tried[rate],
            "test": accuracy(model, test),
            "test_one_fold": accuracy(best, test),
            "num_trainable_params": size,
            "file_size": 4 * size,
            "train_cpu_seconds": round(seconds, 1),
            "kept_megabytes": kept_megabytes(model, batch),
            "inference_milliseconds": milliseconds_per_image(model, batch),
            "cpu_seconds": round(time.process_time() - begin, 1),
            "train_config": asdict(experiment.training),
            "peft_config": experiment.adapter,
            "meta_info": packages(),
        }


def kept_megabytes(model: nn.Module, inputs: Tensor) -> float:
    """Megabytes of all tensors that one forward keeps for its backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # a storage that is freed could be given to the next tensor

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(inputs)
    return round(sum(kept.values()) / 1e6, 1)


@torch.no_grad()
def milliseconds_per_image(model: nn.Module, inputs: Tensor) -> float:
    """Median processor time of a forward, divided by the images in it."""
    model.eval()
    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.process_time()
        model(inputs)
        seconds.append(time.process_time() - begin)
    return round(1000 * median(seconds[1:]) / len(inputs), 2)


def packages() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "machine": platform.machine(),
    }


def show(record: records.Record) -> str:
    """One line about a record."""
    keys = (
        "task",
        "draw",
        "row",
        "experiment",
        "blocks",
        "rate",
        "start",
        "held",
        "out_of_fold",
        "test",
        "cpu_seconds",
    )
    return json.dumps({key: record[key] for key in keys if key in record})
