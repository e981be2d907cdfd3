# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The generated parts of docs/appendix/miniature.md, from the committed results.

    python tools/miniature_page.py

Accuracies are those on the test images, in percent, of the runs with the chosen rates.
"""

from collections.abc import Callable
from statistics import mean, stdev

from paper.markdown import fill
from paper.summary import Cell
from study.miniature import BACKBONES, BLOCKS, RECIPE, SEEDS, VARIANTS, chosen_rate, final_runs
from study.tasks import MINI_SIZES
from study.tasks import MINIATURE as TASKS
from study_results import DOCS, Found, markdown, read

PAGE = DOCS / "appendix" / "miniature.md"
SWEEP = ("shallow", *(f"shallow_at_{k}" for k in BLOCKS[1:]))
NAMES = {
    "linear": "linear",
    "full": "full fine-tuning",
    "lora": "LoRA, rank 8",
    "deep": "VPT-deep",
    "shallow": "VPT-shallow",
    "temperature_only": "temperature only",
    "gate_only": "gate only",
    "gated": "gated (the paper's)",
    "gated_sample": 'gated, "sample" start',
    "gated_kmeans": 'gated, "kmeans" start',
}
PAIRS = (
    ("gate_only", "shallow"),
    ("temperature_only", "shallow"),
    ("gated", "shallow"),
    ("gated", "gate_only"),
    ("gated", "deep"),
    ("gated_sample", "gated"),
    ("gated_kmeans", "gated"),
)
STARTS = ("shallow", "gated", "gated_sample", "gated_kmeans")


def scores(backbone: str, task: str, variant: str, found: Found) -> list[float]:
    """Test accuracies, in percent, of the final runs that are done."""
    return [100 * float(run["test"]) for run in final_runs(variant, found.get(f"{backbone}-{task}", []))]


def pairs_with_results(found: Found) -> list[tuple[str, str]]:
    """Return the (backbone, task) pairs that have results."""
    return [(b, t) for b in BACKBONES for t in TASKS if any(scores(b, t, v, found) for v in VARIANTS)]


def cell(backbone: str, task: str, variant: str, found: Found) -> str:
    """Return '71.20 ± 0.53', or 'not run'."""
    return Cell(dict(enumerate(scores(backbone, task, variant, found))), len(SEEDS)).text()


def methods(found: Found) -> str:
    """Return one table per backbone, with a row for each method and a column for each task."""
    text = []
    for backbone in BACKBONES:
        tasks = [t for b, t in pairs_with_results(found) if b == backbone]
        rows = [["", *tasks]]
        for variant, name in NAMES.items():
            cells = [cell(backbone, task, variant, found) for task in tasks]
            if any(text != "not run" for text in cells):
                rows.append([name, *cells])
        if tasks:
            text.append(f"Backbone: {backbone}\n\n{markdown(rows)}")
    return "\n".join(text)


def sweep(backbone: str, task: str, found: Found) -> dict[int, list[float]]:
    """Return the accuracies of VPT-shallow by insertion block, for the blocks that were run."""
    by_block = {k: scores(backbone, task, v, found) for k, v in zip(BLOCKS, SWEEP, strict=True)}
    return {block: values for block, values in by_block.items() if values}


def best_block(backbone: str, task: str, found: Found) -> int | None:
    """Return the block with the best mean. None unless all were run."""
    values = sweep(backbone, task, found)
    return max(values, key=lambda block: mean(values[block])) if len(values) == len(BLOCKS) else None


def blocks(found: Found) -> str:
    """Return VPT-shallow by insertion block, the best in bold. The last column is its gain over block 0."""
    rows = [["backbone, task", *map(str, BLOCKS), "best minus block 0"]]
    for backbone, task in pairs_with_results(found):
        values, best = sweep(backbone, task, found), best_block(backbone, task, found)
        cells = []
        for block in BLOCKS:
            text = f"{mean(values[block]):.1f}" if block in values else "not run"
            if 0 < len(values.get(block, ())) < len(SEEDS):
                text += f" ({len(values[block])} of {len(SEEDS)} seeds)"
            cells.append(f"**{text}**" if block == best else text)
        gain = "" if best is None else f"{mean(values[best]) - mean(values[0]):+.1f}"
        if values:
            rows.append([f"{backbone}, {task}", *cells, gain])
    return markdown(rows)


def differences(found: Found) -> str:
    """Return mean differences by task, in percentage points, where all seeds of both variants are done.

    The mean over tasks comes with its standard error over tasks.
    """
    text = []
    for backbone in BACKBONES:
        tasks = [t for b, t in pairs_with_results(found) if b == backbone]
        rows = [["", *tasks, "mean over tasks"]]
        for one, other in PAIRS:
            gains = {}
            for task in tasks:
                pair = [scores(backbone, task, name, found) for name in (one, other)]
                if all(len(values) == len(SEEDS) for values in pair):
                    gains[task] = mean(pair[0]) - mean(pair[1])
            if gains:
                values = list(gains.values())
                error = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
                cells = [f"{gains[t]:+.1f}" if t in gains else "not run" for t in tasks]
                rows.append([f"{NAMES[one]} - {NAMES[other]}", *cells, f"{mean(values):+.1f}{error}"])
        if tasks:
            text.append(f"Backbone: {backbone}\n\n{markdown(rows)}")
    return "\n".join(text)


def curve(backbone: str, task: str, variant: str, found: Found) -> dict[int, float]:
    """Return the mean validation accuracy over the seeds, in percent, by epoch."""
    made = [run["curve"] for run in final_runs(variant, found[f"{backbone}-{task}"])]
    return {points[0][0]: 100 * mean(p[1] for p in points) for points in zip(*made, strict=True)}


def epochs(found: Found) -> str:
    """Return the first recorded epoch whose mean validation accuracy is 90 % of the final one of `gated`."""
    rows = [["backbone, task", "to reach, %", *(NAMES[v] for v in STARTS)]]
    for backbone, task in pairs_with_results(found):
        reference = curve(backbone, task, "gated", found)
        if not reference:
            continue
        goal = 0.9 * reference[max(reference)]
        cells = []
        for variant in STARTS:
            values = curve(backbone, task, variant, found)
            reached = [epoch for epoch, value in values.items() if value >= goal]
            cells.append(str(min(reached)) if reached else "never" if values else "not run")
        rows.append([f"{backbone}, {task}", f"{goal:.1f}", *cells])
    return markdown(rows)


def gates(found: Found) -> str:
    """Return the gates (mean over seeds) by block, the block with the largest, and the best insertion block."""
    rows = [["backbone, task", *map(str, range(11)), "largest", "best insertion"]]
    for backbone, task in pairs_with_results(found):
        made = final_runs("gated", found[f"{backbone}-{task}"])
        if not made:
            continue
        means = [mean(values) for values in zip(*(record["gates"] for record in made), strict=True)]
        best = best_block(backbone, task, found)
        rows.append(
            [
                f"{backbone}, {task}",
                *(f"{value:.2g}" for value in means),
                str(means.index(max(means))),
                "not run" if best is None else str(best),
            ]
        )
    return markdown(rows)


def rates(found: Found) -> str:
    """Return the chosen learning rates."""
    tried = [v for v in (*NAMES, *SWEEP[1:]) if VARIANTS[v].like is None]
    rows = [["", *(f"{b}, {t}" for b, t in pairs_with_results(found))]]
    for variant in tried:
        kept = [chosen_rate(variant, found[f"{b}-{t}"]) for b, t in pairs_with_results(found)]
        name = NAMES.get(variant, variant.replace("shallow_at_", "VPT-shallow at "))
        rows.append([name, *("not run" if rate is None else f"{rate:g}" for rate in kept)])
    return markdown(rows)


def cost(found: Found) -> str:
    """Return the number of runs, their time and their common settings."""
    runs = [run for records in found.values() for run in records]
    seconds = sum(run["cpu_seconds"] for run in runs)
    sizes = "{train} training, {val} validation and {test} test images".format(**MINI_SIZES)
    recipe = "{epochs} epochs in batches of {batch_size}, {num_virtual_tokens} prompts".format(**RECIPE)
    minutes = f"{len(runs)} runs, {seconds / 60:.0f} CPU minutes in total."
    return f"{minutes} {sizes} per task, {recipe}, seeds {', '.join(map(str, SEEDS))}.\n"


PARTS: dict[str, Callable[[Found], str]] = {
    f.__name__: f for f in (cost, methods, blocks, differences, epochs, gates, rates)
}


def new_page(page: str, found: Found) -> str:
    """Return docs/appendix/miniature.md with its generated parts updated."""
    return fill(page, {name: part(found) for name, part in PARTS.items()})


if __name__ == "__main__":
    PAGE.write_text(new_page(PAGE.read_text(encoding="utf-8"), read("miniature")), encoding="utf-8")
