# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The rows of the tables, how each chooses its rates, and which cells come next.

Every rate is chosen with seed 0 on the validation images of `RACED_ON` in a race of `RACE_EPOCHS`; ties go to the
smaller validation loss. The other tasks take these rates, as a user of a recipe would; to race on each would cost more
than all the rest. The final cells train for `EPOCHS` with seeds 0, 1, 2 and alone see the test images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

EPOCHS, RACE_EPOCHS = 10, 3
SEEDS = (0, 1, 2)
LAST = 12
RACED_ON = "eurosat"
PROMPT_RATES = (0.01, 0.03, 0.1)
PROMPT_RATES_FROM_A_FITTED_HEAD = (0.001, 0.003, 0.01, 0.03)
FITTED_HEAD = 0.1  # a head that starts fitted learns with this share of the rate of one that starts at random


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: "shallow", "deep", "gate_only", "temperature_only", "gated", "lora", "full" or "zero".
        rates: Learning rates that it races, of everything but the head (and the gates, where these have their own).
        best_block: Read after the block that the probe chose; False: after the last.
        insert_at: The block that prompts enter; None: half-way to the block that is read.
        gate_rates: Rates that the gates race for themselves, with the prompts' rate of `like`.
        head_start: The head starts as the probe of the features with the untrained prompts in place.
        start: Method of `initialize_prompts`, or "propagate"; None leaves the random start.
        attentive: Queries of an attentive head; 0: the linear head.
        prompts: How many; with deep and zero-start prompts, in each block.
        rank: Of LoRA.
        like: The row whose chosen rate it takes.
    """

    method: str
    rates: tuple[float, ...] = PROMPT_RATES
    best_block: bool = False
    insert_at: int | None = 0
    gate_rates: tuple[float, ...] = ()
    head_start: bool = False
    start: str | None = None
    attentive: int = 0
    prompts: int = 10
    rank: int = 0
    like: str | None = None

    def entry(self, read: int) -> int:
        """The block that prompts enter, of `read` blocks."""
        return read // 2 if self.insert_at is None else self.insert_at


def _rows(suffix: str, best_block: bool) -> dict[str, Row]:
    def like(name: str) -> str:
        return name + suffix

    fitted: dict[str, Any] = {"best_block": best_block, "head_start": True}
    return {
        like("shallow"): Row("shallow", best_block=best_block),
        like("deep"): Row("deep", best_block=best_block),
        like("gated"): Row("gated", best_block=best_block),
        like("gated_rate"): Row("gated", best_block=best_block, gate_rates=(0.1, 0.3), like=like("gated")),
        like("gate_only"): Row("gate_only", best_block=best_block, like=like("gated")),
        like("temperature_only"): Row("temperature_only", best_block=best_block, like=like("gated")),
        like("lora8"): Row("lora", (0.001, 0.003, 0.01), best_block, rank=8),
        like("zero"): Row("zero", best_block=best_block),
        like("gated_attentive"): Row("gated", best_block=best_block, attentive=8, like=like("gated")),
        like("shallow_start"): Row("shallow", PROMPT_RATES_FROM_A_FITTED_HEAD, **fitted),
        like("deep_start"): Row("deep", PROMPT_RATES_FROM_A_FITTED_HEAD, **fitted),
        like("gated_start"): Row("gated", PROMPT_RATES_FROM_A_FITTED_HEAD, **fitted),
        like("gated_start_sample"): Row("gated", start="sample", like=like("gated_start"), **fitted),
        like("gated_start_sample_half"): Row(
            "gated", start="sample", insert_at=None, like=like("gated_start"), **fitted
        ),
        like("gated_start_sample_half_1"): Row(
            "gated", start="sample", insert_at=None, prompts=1, like=like("gated_start"), **fitted
        ),
        like("gated_start_sample_half_3"): Row(
            "gated", start="sample", insert_at=None, prompts=3, like=like("gated_start"), **fitted
        ),
        like("deep_start_sample"): Row("deep", start="sample", like=like("deep_start"), **fitted),
        like("deep_start_propagated"): Row("deep", start="propagate", like=like("deep_start"), **fitted),
        like("gated_start_rate"): Row("gated", start="sample", gate_rates=(0.1,), like=like("gated_start"), **fitted),
        like("zero_start"): Row("zero", PROMPT_RATES_FROM_A_FITTED_HEAD, **fitted),
        like("zero_start_sample"): Row("zero", start="sample", like=like("zero_start"), **fitted),
        like("zero_start_half"): Row("zero", insert_at=None, like=like("zero_start"), **fitted),
        like("zero_start_100"): Row("zero", prompts=100, like=like("zero_start"), **fitted),
        like("zero_start_rate"): Row("zero", gate_rates=(0.03, 0.1), like=like("zero_start"), **fitted),
        like("lora8_start"): Row("lora", (0.0001, 0.0003, 0.001, 0.003), rank=8, **fitted),
        like("lora4_start"): Row("lora", rank=4, like=like("lora8_start"), **fitted),
    }


ROWS: dict[str, Row] = {
    **_rows("", best_block=False),
    **_rows("_best", best_block=True),
    **{f"shallow_at_{k}": Row("shallow", insert_at=k, like="shallow") for k in (2, 4, 6, 8, 10)},
    "full": Row("full", (0.00003, 0.0001)),
}


@dataclass(frozen=True)
class Cell:
    """One training run."""

    task: str
    row: str
    seed: int
    rate: float
    gate_rate: float | None
    epochs: int

    @property
    def name(self) -> str:
        gates = "" if self.gate_rate is None else f"-gates{self.gate_rate:g}"
        return f"{self.row}-rate{self.rate:g}{gates}-epochs{self.epochs}-seed{self.seed}"

    @property
    def is_final(self) -> bool:
        return self.epochs == EPOCHS


Found = Mapping[tuple[str, str], Mapping[str, Any]]


def race(row: str, found: Found) -> list[Cell] | None:
    """The cells among which the rates of a row are chosen; None while those of the row that it follows are open."""
    spec = ROWS[row]
    rates: tuple[float, ...] = spec.rates
    if spec.like is not None:
        followed = winner(spec.like, found)
        if followed is None:
            return None
        rates = (followed.rate,)
    return [
        Cell(RACED_ON, row, SEEDS[0], rate, gate_rate, RACE_EPOCHS)
        for rate in rates
        for gate_rate in (spec.gate_rates or (None,))
    ]


def winner(row: str, found: Found) -> Cell | None:
    """The race cell with the best validation accuracy; None while the race is not over. One that runs alone wins."""
    cells = race(row, found)
    if cells is None:
        return None
    if len(cells) == 1:
        return cells[0]
    results = [found.get((RACED_ON, cell.name)) for cell in cells]
    if any(result is None for result in results):
        return None
    order = [(result["val"], -result["val_loss"]) for result in results if result is not None]
    return cells[order.index(max(order))]


def final(task: str, row: str, seed: int, found: Found) -> Cell | None:
    """The final cell of this row and seed; None while its rates are open."""
    won = winner(row, found)
    return None if won is None else Cell(task, row, seed, won.rate, won.gate_rate, EPOCHS)


def steps_to(task: str, row: str, seed: int, found: Found) -> Iterator[Cell]:
    """The cells that are missing and can run now on the way to this final cell."""
    cell = final(task, row, seed, found)
    if cell is not None:
        if (task, cell.name) not in found:
            yield cell
        return
    like = ROWS[row].like
    if like is not None and winner(like, found) is None:
        yield from steps_to(task, like, SEEDS[0], found)
        return
    yield from (cell for cell in race(row, found) or () if (RACED_ON, cell.name) not in found)
