# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Full runs, each in its own folder; a finished one is read, not repeated."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from recipe.reporting import read_out, write_json

from .bench import Bench
from .fitting import CHECKPOINTS, Rates, fit
from .trained import save_trained

RECORD, SCORES = "run.json", "scores.safetensors"


@dataclass(frozen=True)
class Run:
    """What a finished run left in its folder: `record`, and scores (N, K) on validation."""

    folder: Path
    record: dict[str, Any]
    scores: Tensor

    @property
    def gain(self) -> float:
        return float(self.record["gain"])

    @property
    def kept(self) -> Path:
        """The folder with what was trained."""
        return self.folder / kept_in(self.record["method"])


def run(
    bench: Bench, method: str, seed: int, rates: Rates, begin: dict[str, Tensor], batches: int, folder: Path
) -> Run:
    """Train, and leave in `folder` what `finished` reads."""
    fitted = fit(bench, method, seed, rates, begin, batches, folder, f"{method}, seed {seed}")
    if fitted.accelerator.is_main_process:
        save_trained(fitted.model, folder / kept_in(method), bench.predictor_of(method))
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
    return _read(folder)


def finished(folder: Path) -> Run | None:
    """What an earlier call trained and left in this folder; None: it was not finished."""
    return _read(folder) if (folder / RECORD).is_file() else None


def _read(folder: Path) -> Run:
    return Run(folder, json.loads((folder / RECORD).read_text()), load_file(folder / SCORES)["scores"])


def kept_in(method: str) -> str:
    """Name of the folder that holds what was trained: an adapter, or parts of the model itself."""
    return "model" if method in ("full", "linear") else "adapter"
