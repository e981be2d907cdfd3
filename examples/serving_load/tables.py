# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The generated parts of docs/serving.md, and the numbers that other tables and figures show."""

from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from paper.generated import fill

from . import records
from .plan import BACKBONES, COUNTS, ONE, Cell

NAMES = {"gated": "gated prompts", "lora": "LoRA adapters", "full": "full models"}
Results = dict[str, Any]


def measured_as(contender: str, tasks: int) -> str:
    """The contender that stands for this one: for one gated task, the server that has no other."""
    return ONE if contender == "gated" and tasks == 1 else contender


def rounds(results: Results, contender: str, tasks: int, clients: int) -> list[dict[str, float]]:
    """The visits of a cell."""
    cell = Cell(measured_as(contender, tasks), tasks, clients)
    return list(results["cells"].get(cell.key, []))


def axis(results: Results, name: str) -> list[int]:
    """The numbers of tasks or of clients that were measured."""
    place = Cell._fields.index(name)
    return sorted({int(key.split()[place]) for key in results["cells"]})


def middle(visits: list[dict[str, float]], what: str) -> float:
    """Median over the rounds."""
    return median(one[what] for one in visits)


def ratio(results: Results, contender: str, clients: int) -> float | None:
    """Time to an answer with most tasks divided by that with one, in the same round: median over the rounds."""
    most = rounds(results, contender, axis(results, "tasks")[-1], clients)
    one = rounds(results, contender, 1, clients)
    pairs = list(zip(most, one, strict=False))
    return median(a["mean_ms"] / b["mean_ms"] for a, b in pairs) if pairs else None


def megabytes(results: Results, contender: str, tasks: int) -> float | None:
    """Resident memory of the replica."""
    found: float | None = results["memory"].get(f"{measured_as(contender, tasks)} {tasks}")
    return found


DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "serving.md"


def main(args: Namespace) -> None:
    """Write the page."""
    PAGE.write_text(page(read(args.results)))


def read(results: Path) -> dict[str, Results]:
    """All results, by file name."""
    return {path.stem: records.read(path) for path in sorted(results.glob("*.json"))}


def page(found: dict[str, Results]) -> str:
    """The page with its generated parts updated."""
    parts = {f"times, {name}": times(name, found[name]) for name in BACKBONES}
    parts |= {"memory": memory(found), "steady": steady(found["steady"])}
    parts |= {"overload": overload(found["overload"])}
    return fill(PAGE.read_text(), parts)


def times(name: str, results: Results) -> str:
    """Requests per second and percentiles, by clients, contender and tasks."""
    machine = results["machine"]
    visits = [len(each) for each in results["cells"].values()]
    tasks = axis(results, "tasks")
    lines = [
        f"Backbone: {BACKBONES[name].label}, {BACKBONES[name].prompts} prompts; {machine['cpu']}, "
        f"torch {machine['torch']}, PEFT {machine['peft']}, Ray {machine['ray']}; medians over "
        f"{min(visits)} to {max(visits)} rounds of {results['seconds']:g} s. In each cell: requests per second, and "
        "p50 / p95 / p99 in ms.",
        "",
        f"| clients | | {' | '.join(map(count, tasks))} | time, {tasks[-1]} / 1 |",
        "|" + "---|" * (len(tasks) + 3),
    ]
    for clients in axis(results, "clients"):
        for contender, label in NAMES.items():
            shown = [cell(rounds(results, contender, one, clients)) for one in tasks]
            if any(shown):
                times_one = ratio(results, contender, clients)
                last = "" if times_one is None else f"{times_one:.2f}"
                lines.append(f"| {clients} | {label} | {' | '.join(shown)} | {last} |")
    return "\n".join(lines)


def count(tasks: int) -> str:
    """'1 task', '4 tasks'."""
    return "1 task" if tasks == 1 else f"{tasks} tasks"


def cell(visits: list[dict[str, float]]) -> str:
    """'81.0, 98 / 120 / 130', or nothing where nothing was measured."""
    if not visits:
        return ""
    spread = " / ".join(f"{middle(visits, f'p{share}_ms'):.0f}" for share in (50, 95, 99))
    return f"{middle(visits, 'per_second'):.1f}, {spread}"


def memory(found: dict[str, Results]) -> str:
    """Resident megabytes of the replica."""
    lines = [f"| backbone | | {' | '.join(map(count, COUNTS))} | {COUNTS[-1]} / 1 |", "|" + "---|" * (len(COUNTS) + 3)]
    for name, backbone in BACKBONES.items():
        for contender, label in NAMES.items():
            row = [megabytes(found[name], contender, tasks) for tasks in COUNTS]
            shown = " | ".join("" if one is None else f"{one:.0f}" for one in row)
            growth = "" if row[0] is None or row[-1] is None else f"{row[-1] / row[0]:.2f}"
            lines.append(f"| {backbone.label} | {label} | {shown} | {growth} |")
    return "\n".join(lines)


def steady(results: Results) -> str:
    """Counts of the long runs."""
    churn, killed = results["churn"], results["killed"]
    return "\n".join(
        [
            "| | adapters come and go | one of two replicas is killed |",
            "|---|---|---|",
            f"| requests answered | {churn['classify']} | {killed['classify']} |",
            f"| failed or wrong | {churn['failures']} | {killed['failures']} |",
            f"| failed once, answered when repeated | {churn.get('sent again', 0)} | {killed.get('sent again', 0)} |",
            f"| asked to wait (503) | {churn.get('asked to wait', 0)} | {killed.get('asked to wait', 0)} |",
            f"| adapters added and deleted | {churn['put']} | 0 |",
        ]
    )


def overload(found: Results) -> str:
    """Ordinary requests beside each attack."""
    lines = [
        "| 24 clients send PNGs of | p50 / p95 / longest, in ms | memory before and at most, in MB |",
        "|---|---|---|",
    ]
    for name, row in found.items():
        if name != "machine":
            times = f"{row['p50_ms']} / {row['p95_ms']} / {row['max_ms']}"
            lines.append(f"| {name} | {times} | {row['megabytes_before']}, {row['megabytes_peak']} |")
    return "\n".join(lines)
