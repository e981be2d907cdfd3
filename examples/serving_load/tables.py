# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The generated parts of docs/appendix/serving_tables.md, and the numbers that other tables and figures show."""

from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from paper.markdown import fill

from . import records
from .plan import BACKBONES, COUNTS, ONE, RUNTIMES, Cell

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
PAGE = DOCS / "appendix" / "serving_tables.md"


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
    for name, table in (("thousand", thousand), ("adding", adding), ("runtimes", runtimes)):
        parts[name] = table(found[name]) if name in found else "Not run yet."
    return fill(PAGE.read_text(), parts)


def times(name: str, results: Results) -> str:
    """Requests per second and percentiles, by clients, contender and tasks."""
    machine = results["machine"]
    visits = [len(each) for each in results["cells"].values()]
    tasks = axis(results, "tasks")
    lines = [
        f"Backbone: {BACKBONES[name].label}, {BACKBONES[name].prompts} prompts. Machine: {machine['cpu']}, "
        f"torch {machine['torch']}, PEFT {machine['peft']}, Ray {machine['ray']}. Medians over "
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
    """'81.0, 98 / 120 / 130', or nothing if nothing was measured."""
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


RUNTIME_NAMES = {"torch": "PyTorch", "engine": "engine", "int8": "engine, 8 bits"}


def where(results: Results) -> str:
    """The machine, in a sentence."""
    machine = results["machine"]
    return f"{machine['cpu']}, torch {machine['torch']}, PEFT {machine['peft']}, Ray {machine['ray']}."


def thousand(results: Results) -> str:
    """A thousand tasks against one: medians over the rounds, and ratios within a round."""
    measured = [results[name] for name in BACKBONES if name in results]
    counts = sorted({len(rounds) for one in measured for rounds in one["rounds"].values()})
    lines = [
        f"{where(results)} {' or '.join(map(str, counts))} rounds. {results.get('note', '')}".strip(),
        "",
        "| backbone | runtime | requests per second, 1 / 1000 tasks | ratio | p99, ms | ratio | memory, MB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, backbone in BACKBONES.items():
        if name not in results:
            continue
        for runtime in RUNTIMES:
            pairs = [results[name]["rounds"][f"{runtime} {count}"] for count in (1, 1000)]
            shown = [backbone.label, RUNTIME_NAMES[runtime]]
            for what, digits in (("per_second", 1), ("p99_ms", 0)):
                one, many = (middle(rounds, what) for rounds in pairs)
                ratios = [b[what] / a[what] for a, b in zip(*pairs, strict=True)]
                shown += [f"{one:.{digits}f} / {many:.{digits}f}", f"{median(ratios):.2f}"]
            one, many = (results[name]["megabytes"][f"{runtime} {count}"] for count in (1, 1000))
            shown += [f"{one:.0f} / {many:.0f}", f"{many / one:.2f}"]
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def adding(results: Results) -> str:
    """What it takes to add a task, and what others notice."""
    lines = [
        where(results),
        "",
        "| backbone | runtime | adding | first answer | others meanwhile | others before |",
        "|---|---|---|---|---|---|",
    ]
    for name, backbone in BACKBONES.items():
        for runtime in RUNTIMES:
            row = results.get(f"{name} {runtime}")
            if row:
                shown = [backbone.label, RUNTIME_NAMES[runtime]]
                for kind in ("added", "first_answer", "beside", "calm"):
                    shown.append(" / ".join(f"{row[kind][what]:.0f}" for what in ("p50_ms", "p99_ms", "max_ms")))
                lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def runtimes(results: Results) -> str:
    """Images per second and agreement of the runtimes in one process."""
    lines = [
        where(results),
        "",
        "| backbone | runtime | images per second | times PyTorch | same best class |",
        "|---|---|---|---|---|",
    ]
    for name, backbone in BACKBONES.items():
        if name not in results:
            continue
        row = results[name]
        for runtime, label in RUNTIME_NAMES.items():
            same = f"{row['agreement'][runtime]:.1%} of {row['images']}" if name == "tiny" else "random weights"
            per_second, ratio = row["per_second"][runtime], row["times_torch"][runtime]
            lines.append(f"| {backbone.label} | {label} | {per_second:.1f} | {ratio:.2f} | {same} |")
    return "\n".join(lines)


def steady(results: Results) -> str:
    """Counts of the long runs."""
    runs = {
        "adapters come and go": results.get("torch") or results["churn"],
        "the same, on an engine": results.get("engine"),
        "one of two replicas is killed": results["killed"],
    }
    known = {name: run for name, run in runs.items() if run}
    rows: dict[str, tuple[str, ...]] = {
        "requests answered": ("classify",),
        "failed or wrong": ("failures",),
        "failed once, answered when repeated": ("sent again",),
        "asked to wait (503)": ("asked to wait",),
        "adapters added, replaced or deleted": ("add", "replace", "delete", "put"),
    }
    lines = [f"| | {' | '.join(known)} |", "|" + "---|" * (len(known) + 1)]
    for label, keys in rows.items():
        counts = [str(sum(run.get(key, 0) for key in keys)) for run in known.values()]
        lines.append(f"| {label} | {' | '.join(counts)} |")
    return "\n".join(lines)


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
