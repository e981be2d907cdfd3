# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The curves of docs/real.md; docs/figures/charts.py draws the accuracy by block."""

from pathlib import Path
from statistics import mean

from . import grid
from .cells import Found, final_runs

FOLDER = Path(__file__).parents[2] / "docs" / "images"
CURVES = {
    "gated_start": "gated, random prompts",
    "gated_start_sample": 'gated, "sample" start',
    "zero_start": "zero-start prompts",
    "lora8_start": "LoRA, rank 8",
}


def draw(found: Found) -> None:
    """Draw validation accuracy by epoch."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for row, label in CURVES.items():
        for suffix, style, where in (("", "--", "last block"), ("_best", "-", "chosen block")):
            curve = mean_curve("eurosat", row + suffix, found)
            if curve:
                axes.plot(range(len(curve)), curve, style, label=f"{label}, {where}")
    probe = found.get(("eurosat", "probe"))
    if probe is not None:
        axes.axhline(100 * max(probe["val"]), color="grey", linewidth=1, label="logistic regression, chosen block")
    axes.set(
        xlabel="epoch",
        ylabel="validation accuracy, %",
        title="EuroSAT, from a fitted head",
        xticks=range(grid.EPOCHS + 1),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(FOLDER / "real_epochs.png", dpi=110)
    plt.close("all")


def mean_curve(task: str, row: str, found: Found) -> list[float]:
    """Validation accuracy by epoch in percent, mean over the seeds that are there."""
    curves = [run["curve"] for run in final_runs(task, row, found)]
    return [100 * mean(values) for values in zip(*curves, strict=True)]
