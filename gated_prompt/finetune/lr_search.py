# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Learning rates by successive halving on validation: many short runs, the better half again for twice as long."""

import json
from pathlib import Path

from .experiment import Experiment
from .fit import InitialState, LearningRates, fit
from .recipe import PROMPT_METHODS, recommended
from .reporting import write_json

# (rates of what is trained, factors of gates and temperatures and of the head); the first pair is for short trainings.
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
    """Rounds as (runs, steps of each): halves of twice the length, all together no longer than one full run.

    Empty where that is less than one step.
    """
    counts = [runs]
    while counts[-1] > 2:
        counts.append(counts[-1] // 2)
    unit = steps // sum(count * 2**index for index, count in enumerate(counts))
    return [(count, unit * 2**index) for index, count in enumerate(counts)] if unit else []


def search_rates(experiment: Experiment, begin: InitialState, batches: int, record: Path) -> LearningRates:
    """The rates whose run is the best of the last round; of equals the one with the smaller validation loss.

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
                fitted = fit(experiment, begin, rates, length, None, label)
                watch = fitted.watch
                assert watch is not None  # there is a validation part
                found[key] = [watch.gain, -watch.curve[-1]["loss"]]
                if fitted.accelerator.is_main_process:
                    write_json(record, found)
        ranked = sorted(alive, key=lambda index: found[f"{entries[index]} for {length}"], reverse=True)
        alive = ranked[: len(ranked) // 2]
    return entries[alive[0]]
