# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The tables and the picture of docs/serving.md, made from what was measured.

python examples/measure_server.py tables
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

from recipe.generated import fill

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "serving.md", DOCS / "images" / "serving.png"
KINDS = ("tiny", "small")
NAMES = {"gated": "gated prompts", "lora": "LoRA adapters", "full": "full models"}
Results = dict[str, Any]


def main(results: Path) -> None:
    """Write page and picture."""
    found = read(results)
    PAGE.write_text(page(found))
    draw(found, PICTURE)


def read(results: Path) -> dict[str, Results]:
    """What was measured, by file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}


def page(found: dict[str, Results]) -> str:
    """The page with its parts made anew."""
    parts = {f"times, {kind}": times(found[kind]) for kind in KINDS}
    parts |= {"memory": memory(found), "steady": steady(found["steady"])}
    return fill(PAGE.read_text(), parts)


def rounds(results: Results, name: str, tasks: int, clients: int) -> list[dict[str, float]]:
    """The visits of a cell; one task of ours is measured on a server that has no other."""
    contender = "one" if name == "gated" and tasks == 1 else name
    return list(results["cells"].get(f"{contender} {tasks} {clients}", []))


def axis(results: Results, place: int) -> list[int]:
    """Numbers of tasks (1) or of clients (2) that were measured."""
    return sorted({int(key.split()[place]) for key in results["cells"]})


def middle(cell: list[dict[str, float]], what: str) -> float:
    """Median over the rounds."""
    return median(one[what] for one in cell)


def ratio(results: Results, name: str, clients: int) -> float:
    """Time of an answer with most tasks by that with one, in the same round: median over the rounds."""
    most = rounds(results, name, axis(results, 1)[-1], clients)
    one = rounds(results, name, 1, clients)
    return median(a["mean_ms"] / b["mean_ms"] for a, b in zip(most, one, strict=False))


def times(results: Results) -> str:
    """Requests per second and percentiles, by clients, contender and tasks."""
    tasks = axis(results, 1)
    machine, visits = results["machine"], [len(cell) for cell in results["cells"].values()]
    lines = [
        f"Backbone: {results['backbone']}, {results['prompts']} prompts; {machine['cpu']}, torch {machine['torch']}, "
        f"PEFT {machine['peft']}, Ray {machine['ray']}; medians over {min(visits)} rounds of {results['seconds']:g} s. "
        "In each cell: requests per second, and p50 / p95 / p99 in ms.",
        "",
        f"| clients | | {' | '.join(f'{n} tasks' if n > 1 else '1 task' for n in tasks)} | time, {tasks[-1]} / 1 |",
        "|" + "---|" * (len(tasks) + 3),
    ]
    for clients in axis(results, 2):
        for name, label in NAMES.items():
            shown = [cell(rounds(results, name, count, clients)) for count in tasks]
            lines.append(f"| {clients} | {label} | {' | '.join(shown)} | {ratio(results, name, clients):.2f} |")
    return "\n".join(lines)


def cell(visits: list[dict[str, float]]) -> str:
    """'81.0, 98 / 120 / 130'."""
    spread = " / ".join(f"{middle(visits, f'p{share}_ms'):.0f}" for share in (50, 95, 99))
    return f"{middle(visits, 'per_second'):.1f}, {spread}"


def memory(found: dict[str, Results]) -> str:
    """Resident megabytes of the replica."""
    tasks = axis(found["tiny"], 1)
    lines = [f"| backbone | | {' | '.join(map(str, tasks))} | {tasks[-1]} / 1 |", "|" + "---|" * (len(tasks) + 3)]
    for kind in KINDS:
        for name, label in NAMES.items():
            held = found[kind]["memory"]
            row = [held.get(f"{'one' if name == 'gated' and n == 1 else name} {n}") for n in tasks]
            shown = " | ".join("-" if one is None else f"{one:.0f}" for one in row)
            lines.append(f"| {found[kind]['backbone']} | {label} | {shown} | {row[-1] / row[0]:.2f} |")
    return "\n".join(lines)


def steady(results: Results) -> str:
    """What happened in the long runs."""
    churn, killed = results["churn"], results["killed"]
    return "\n".join(
        [
            "| | adapters come and go | one of two replicas is killed |",
            "|---|---|---|",
            f"| requests answered | {churn['classify']} | {killed['classify']} |",
            f"| failed or wrong | {churn['failures']} | {killed['failures']} |",
            f"| broke, answered when sent again | {churn.get('sent again', 0)} | {killed.get('sent again', 0)} |",
            f"| asked to wait (503) | {churn.get('asked to wait', 0)} | {killed.get('asked to wait', 0)} |",
            f"| adapters put up and taken down | {churn['put']} | 0 |",
        ]
    )


def draw(found: dict[str, Results], target: Path) -> None:
    """Requests per second by number of tasks, 8 clients."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    with plt.style.context("tableau-colorblind10"):
        figure, all_axes = plt.subplots(1, len(KINDS), figsize=(8, 3.2), layout="constrained")
        for axes, kind in zip(all_axes, KINDS, strict=True):
            tasks = axis(found[kind], 1)
            for (name, label), mark in zip(NAMES.items(), ("o-", "s--", "^:"), strict=True):
                rates = [middle(rounds(found[kind], name, count, 8), "per_second") for count in tasks]
                axes.plot(tasks, rates, mark, label=label)
            axes.set_xscale("log", base=2)
            axes.set(xlabel="tasks", ylabel="requests per second", title=found[kind]["backbone"], xticks=tasks)
            axes.set_xticklabels(map(str, tasks))
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        all_axes[0].legend()
        figure.savefig(target, dpi=110)
        plt.close(figure)
