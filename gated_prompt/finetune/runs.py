# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Full runs, each in its own folder, after a search for learning rates. A finished run is read, not repeated."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from .experiment import Experiment, KeptTokens, LearningRates
from .export import save_trained
from .fit import CHECKPOINTS, InitialState, batches_per_epoch, fit, fit_all, time_batches
from .recipe import PROMPT_METHODS, recommended
from .report import read_out, write_json

RECORD, SCORES = "run.json", "scores.safetensors"
TIMED_BATCHES = 3  # the first one is slower than the others, about as much as validation adds later
# (rates of what is trained, factors of gates and temperatures and of the head). Short trainings use the first pair.
Grid = tuple[tuple[float, ...], tuple[tuple[float, float], ...]]
PROMPT_RATES = (0.001, 0.003, 0.01, 0.03)
GRIDS: dict[str, Grid] = {
    "lora": ((0.001, 0.0003, 0.003, 0.01), ((1.0, 0.1), (1.0, 1.0))),
    "full": ((1e-5, 3e-6, 3e-5, 1e-4), ((1.0, 1.0), (1.0, 10.0))),
    "linear": ((0.001, 0.0001, 0.0003, 0.003), ((1.0, 1.0),)),
}


def grid(method: str) -> list[LearningRates]:
    """The rates that are tried: 8, or 4 where there is only a head."""
    mains, factors = _prompt_grid(method) if method in PROMPT_METHODS else GRIDS[method]
    return [LearningRates(main, main * gates, main * head) for main in mains for gates, head in factors]


def _prompt_grid(method: str) -> Grid:
    recipe = recommended(method)
    rates = dict.fromkeys((recipe.learning_rate, *PROMPT_RATES))  # the recommended one first
    return tuple(rates), ((1.0, recipe.head_share), (3.0, 0.01))


def budgets(runs: int, steps: int) -> list[tuple[int, int]]:
    """Return rounds as (runs, steps of each). Each has half the runs at twice the length. Together they cost one run.

    Empty if that is less than one step.
    """
    counts = [runs]
    while counts[-1] > 2:
        counts.append(counts[-1] // 2)
    unit = steps // sum(count * 2**index for index, count in enumerate(counts))
    return [(count, unit * 2**index) for index, count in enumerate(counts)] if unit else []


def search_rates(experiment: Experiment, begin: InitialState, batches: int, record: Path) -> LearningRates:
    """The rates whose run is the best of the last round. Of equals the one with the smaller validation loss.

    Every run has a schedule of its own that ends at 0, as the full run has. What is found is kept in `record`, so that
    a race that was stopped resumes.
    """
    entries = grid(begin.method)
    found: dict[str, list[float]] = json.loads(record.read_text()) if record.is_file() else {}
    alive = list(range(len(entries)))
    together = experiment.args.gradient_accumulation_steps
    rounds = budgets(len(entries), batches // together)
    for number, (_, steps) in enumerate(rounds, 1):
        length = steps * together
        for index in alive:
            rates = entries[index]
            key = f"{rates} for {length}"
            if key not in found:
                label = f"{begin.method}, race {number}/{len(rounds)}, rate {rates.main:g}, head {rates.head:g}"
                _, watch = fit(experiment, begin, rates, length, None, label)
                found[key] = [watch.score_to_maximize, -watch.curve[-1]["loss"]]
                if experiment.accelerator.is_main_process:
                    write_json(record, found)
        ranked = sorted(alive, key=lambda index: found[f"{entries[index]} for {length}"], reverse=True)
        alive = ranked[: len(ranked) // 2]
    return entries[alive[0]]


@dataclass(frozen=True)
class Run:
    """What a finished run left in its folder: `record`, and scores of the N validation images.

    These are logits or numbers (N, K), or confusion matrices (N, K, K).
    """

    folder: Path
    record: dict[str, Any]
    scores: Tensor

    @property
    def score_to_maximize(self) -> float:
        return float(self.record["score_to_maximize"])

    @property
    def kept(self) -> Path:
        """The folder with what was trained."""
        return self.folder / kept_in(self.record["method"])


def run_seeds(experiment: Experiment, method: str, output: Path) -> Iterator[Run]:
    """One run of a method for each seed. Unless rates are given, the first one searches for those of all."""
    rates: LearningRates | None = None
    kept: KeptTokens | None = None
    args, images, say = experiment.args, experiment.train_images, experiment.accelerator.print
    batches = args.num_train_epochs * batches_per_epoch(experiment, images)
    for seed in args.seeds:
        folder = output / f"{method}-seed{seed}"
        done = finished(folder)
        if done is None:
            folder.mkdir(parents=True, exist_ok=True)
            tensors = experiment.beginning(method, seed, folder, images)
            if rates is None:
                kept = experiment.keep_tokens(method, output / f"{method}-tokens")
            begin = InitialState(method, seed, tensors, kept)
            say(estimate(experiment, begin, batches, rates is None))
            rates = rates or find_rates(experiment, begin, batches, output / f"{method}-race.json")
            done = run(experiment, begin, rates, batches, folder)
        yield done
    if experiment.accelerator.is_main_process:
        shutil.rmtree(output / f"{method}-tokens", ignore_errors=True)


def estimate(experiment: Experiment, begin: InitialState, batches: int, first: bool) -> str:
    """How long a run will take, from the seconds of a few batches. Their model is thrown away."""
    method = begin.method
    few, given = min(TIMED_BATCHES, batches), experiment.rates(method)
    rates = grid(method)[0] if given is None else given
    seconds = time_batches(experiment, begin, rates, few, f"{method}, a few batches for the clock")
    searches = first and given is None
    refits = len(experiment.all_images) / len(experiment.train_images) if experiment.refits else 0.0
    minutes = seconds / few * batches * (1 + searches + refits) / 60
    steps = "search for rates, training" if searches else "training"
    return f"{method}: {steps}{' and refit' if refits else ''} take about {minutes:.1f} minutes"


def find_rates(experiment: Experiment, begin: InitialState, batches: int, record: Path) -> LearningRates:
    """The rates that were given, or those that win a race, which is kept in `record`."""
    rates = experiment.rates(begin.method)
    if rates is None:
        rates = search_rates(experiment, begin, batches, record)
        experiment.accelerator.print(f"{begin.method}: learning rate {rates.main:g}")
    head = experiment.args.head_learning_rate
    return rates if head is None else replace(rates, head=head)


def run(experiment: Experiment, begin: InitialState, rates: LearningRates, batches: int, folder: Path) -> Run:
    """Train, and leave in `folder` what `finished` reads."""
    accelerator, method, seed = experiment.accelerator, begin.method, begin.seed
    fitted, watch = fit(experiment, begin, rates, batches, folder, f"{method}, seed {seed}")
    if accelerator.is_main_process:
        save_trained(fitted.model, folder / kept_in(method), experiment.predictor_of(method))
        save_file({"scores": watch.scores}, folder / SCORES)
        record = {
            "method": method,
            "seed": seed,
            "rates": vars(rates),
            "best_epoch": watch.best,
            "score_to_maximize": watch.score_to_maximize,
            "curve": watch.curve,
            "trained_parameters": fitted.trained_parameters,
            "seconds": round(fitted.seconds, 1),
            "learned": read_out(fitted.model),
        }
        write_json(folder / RECORD, record)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:  # end_training would also end the other processes' group
        tracker.finish()
    accelerator.trackers = []
    return _read(folder)


def refit(experiment: Experiment, chosen: Run) -> Path:
    """Train on all labelled images with the rates and epochs of a run, and return the folder with the result."""
    accelerator, method, seed = experiment.accelerator, chosen.record["method"], chosen.record["seed"]
    folder = chosen.folder.with_name(f"{chosen.folder.name}-all")
    if not (folder / RECORD).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = experiment.beginning(method, seed, folder, experiment.all_images)
        rates, begin = LearningRates(**chosen.record["rates"]), InitialState(method, seed, tensors, None)
        epochs = chosen.record["best_epoch"]
        fitted = fit_all(experiment, begin, rates, epochs, folder, f"{method}, seed {seed}, all images")
        if accelerator.is_main_process:
            save_trained(fitted.model, folder / kept_in(method), experiment.predictor_of(method))
            record = {"epochs": epochs, "seconds": round(fitted.seconds, 1), "learned": read_out(fitted.model)}
            write_json(folder / RECORD, record)
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        accelerator.wait_for_everyone()
    return folder / kept_in(method)


def finished(folder: Path) -> Run | None:
    """What an earlier call trained and left in this folder. None if it was not finished."""
    return _read(folder) if (folder / RECORD).is_file() and (folder / SCORES).is_file() else None


def _read(folder: Path) -> Run:
    record = json.loads((folder / RECORD).read_text())
    record.setdefault("score_to_maximize", record.get("gain"))  # its name before
    return Run(folder, record, load_file(folder / SCORES)["scores"])


def kept_in(method: str) -> str:
    """Name of the folder that holds what was trained: an adapter, or parts of the model itself."""
    return "adapter" if method in PROMPT_METHODS or method == "lora" else "model"
