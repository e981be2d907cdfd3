# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What is compared, for how long and how often."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import made

ONE = "one"  # the gated server with a single adapter. "gated" serves 64 and is asked for some or all of them
CONTENDERS = (ONE, "gated", "lora", "full")
COUNTS = [1, 4, 16, 64]
SECONDS = {"tiny": 5.0, "small": 10.0}  # of each visit of a cell
ROUNDS = {"tiny": (6, 3), "small": (5, 2)}  # of one adapter and of 64, which decide, and of all other cells


class Cell(NamedTuple):
    """A contender with this many tasks, asked by this many clients."""

    contender: str
    tasks: int
    clients: int

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.contender} {self.tasks} {self.clients}"

    @property
    def decides(self) -> bool:
        """Whether the goal is about it."""
        return self.contender == ONE or (self.contender, self.tasks) == ("gated", max(COUNTS))


def cells(backbone: str) -> Iterator[Cell]:
    """All cells of a backbone. A ViT-S/16 answers 32 clients so slowly that only the deciding pair is asked."""
    counts = {ONE: COUNTS[:1], "gated": COUNTS[1:], "lora": COUNTS, "full": COUNTS}
    if backbone == "small":
        counts |= {name: [COUNTS[0], COUNTS[-1]] for name in ("lora", "full")}
    for clients in (1, 8, 32):
        for contender in CONTENDERS:
            for tasks in counts[contender]:
                cell = Cell(contender, tasks, clients)
                if cell.decides or backbone == "tiny" or clients < 32:
                    yield cell


def visits(backbone: str) -> Iterator[tuple[int, Cell]]:
    """Rounds and their cells: each round visits every cell once, so a slow minute of the machine hits all alike."""
    deciding, others = ROUNDS[backbone]
    for number in range(deciding):
        for cell in cells(backbone):
            if cell.decides or number < others:
                yield number, cell


def options(backbone: str, contender: str, folder: Path) -> dict[str, object]:
    """Options of the server of a contender."""
    count = 1 if contender == ONE else max(COUNTS)
    return {"backbone": made.backbone(backbone, folder), "adapters": made.adapters(backbone, count, folder)}
