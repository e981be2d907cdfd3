# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Full runs, each in its own folder; a finished one is read, not repeated."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor

from .experiment import Bench
from .fit import CHECKPOINTS, Beginning, Rates, fit
from .kept_tokens import KeptTokens, keep_tokens
from .lr_search import race
from .recipe import recommended
from .reporting import read_out, write_json
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


def run_seeds(bench: Bench, method: str, batches: int, output: Path) -> Iterator[Run]:
    """One run of a method for each seed; unless rates are given, the first one races for those of all."""
    rates: Rates | None = None
    kept: KeptTokens | None = None
    for seed in bench.args.seeds:
        folder = output / f"{method}-seed{seed}"
        done = finished(folder)
        if done is None:
            folder.mkdir(parents=True, exist_ok=True)
            tensors = bench.beginning(method, seed, folder)
            if rates is None:
                kept = keep_tokens(bench, method, output / f"{method}-tokens")
            begin = Beginning(method, seed, tensors, kept)
            rates = rates or find_rates(bench, begin, batches, output / f"{method}-race.json")
            done = run(bench, begin, rates, batches, folder)
        yield done
    if PartialState().is_main_process:
        shutil.rmtree(output / f"{method}-tokens", ignore_errors=True)


def find_rates(bench: Bench, begin: Beginning, batches: int, record: Path) -> Rates:
    """The rates that were given, or those that win a race, which is kept in `record`."""
    args = bench.args
    if args.learning_rate == "auto":
        rates = race(bench, begin, batches, record)
        PartialState().print(f"{begin.method}: learning rate {rates.main:g}")
    else:
        rate = float(args.learning_rate)
        rates = Rates(rate, rate, recommended(begin.method).head_share * rate)
    return rates if args.head_learning_rate is None else replace(rates, head=args.head_learning_rate)


def run(bench: Bench, begin: Beginning, rates: Rates, batches: int, folder: Path) -> Run:
    """Train, and leave in `folder` what `finished` reads."""
    method, seed = begin.method, begin.seed
    fitted = fit(bench, begin, rates, batches, folder, f"{method}, seed {seed}")
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
