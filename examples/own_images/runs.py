# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Full runs, each in a folder of its own; one that is finished is read, not run again."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gated_prompt
from recipe.checkpoints import trained_tensors
from recipe.reporting import has_prompts, read_out, write_json

from .bench import Bench
from .fitting import CHECKPOINTS, Rates, fit

RECORD, WEIGHTS, SCORES = "run.json", "trained.safetensors", "scores.safetensors"


@dataclass(frozen=True)
class Run:
    """What a finished run left in its folder: `record`, and scores (N, K) on validation."""

    folder: Path
    record: dict[str, Any]
    scores: Tensor

    @property
    def gain(self) -> float:
        return float(self.record["gain"])


def run(
    bench: Bench, method: str, seed: int, rates: Rates, head: dict[str, Tensor], batches: int, folder: Path
) -> Run:
    """Train, or read what an earlier call trained."""
    if not (folder / RECORD).is_file():
        fitted = fit(bench, method, seed, rates, head, batches, folder)
        if fitted.accelerator.is_main_process:
            _write(fitted.model, bench, folder)
            tensors = {n: t.detach().cpu().contiguous().clone() for n, t in trained_tensors(fitted.model).items()}
            save_file(tensors, folder / WEIGHTS)
            save_file({"scores": fitted.watch.scores}, folder / SCORES)
            record = {
                "method": method,
                "seed": seed,
                "rates": vars(rates),
                "best_epoch": fitted.watch.best,
                "gain": fitted.watch.gain,
                "curve": fitted.watch.curve,
                "trained_parameters": fitted.trained_parameters,
                "seconds": round(fitted.seconds, 1),
                "learned": read_out(fitted.model),
            }
            write_json(folder / RECORD, record)
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        fitted.accelerator.wait_for_everyone()
        for tracker in fitted.accelerator.trackers:  # end_training would take the other processes away as well
            tracker.finish()
    return Run(folder, json.loads((folder / RECORD).read_text()), load_file(folder / SCORES)["scores"])


def restored(bench: Bench, finished: Run) -> tuple[Any, nn.Module]:
    """The accelerator and the trained model of a finished run."""
    accelerator, model = bench.start(finished.record["method"], finished.record["seed"], finished.folder)
    state = load_file(finished.folder / WEIGHTS)
    with torch.no_grad():
        for name, tensor in trained_tensors(model).items():
            tensor.copy_(state[name])
    return accelerator, model


def saved_in(method: str) -> str:
    """The folder below a run's that holds what can be loaded again: an adapter, or a whole model."""
    return "model" if method in ("full", "linear") else "adapter"


def _write(model: nn.Module, bench: Bench, folder: Path) -> None:
    if isinstance(model, PeftModel) and has_prompts(model):
        gated_prompt.save(model, folder / "adapter")
    elif isinstance(model, PeftModel):
        model.save_pretrained(folder / "adapter")
    else:
        model.save_pretrained(folder / "model")  # type: ignore[operator]  # transformers'
