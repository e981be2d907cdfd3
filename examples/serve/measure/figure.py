# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Throughput by number of tasks, in colours for light and for dark pages."""

import io
from pathlib import Path
from typing import Any

from gated_prompt.plots import COLOURS

from .made import BACKBONES
from .summary import NAMES, Results, axis, middle, rounds

IMAGES = Path(__file__).parents[3] / "docs" / "images"
CLIENTS = 8
PAPER = {"light": ("#ffffff", "#1b1f24"), "dark": ("#14171c", "#e8ebef")}  # background, text and axes
MARKS = ("o-", "s--", "^:")  # shape and line tell the contenders apart without colour
SHADES = {"light": COLOURS, "dark": ("#56B4E9", "#E69F00", "#009E73")}


def drawings(found: dict[str, Results]) -> dict[Path, str]:
    """The figure as SVG, by file."""
    return {IMAGES / f"serving_{name}.svg": drawing(found, name) for name in PAPER}


def drawing(found: dict[str, Results], look: str) -> str:
    """Requests per second of 8 clients by number of tasks, one panel per backbone."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    paper, ink = PAPER[look]
    style: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
    )
    style |= {
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "legend.facecolor": paper,
        "savefig.facecolor": paper,
    }
    style |= {"svg.fonttype": "none", "svg.hashsalt": "serving"}  # text stays text, and a second run gives the same
    with mpl.rc_context(style):
        figure, panels = plt.subplots(1, len(BACKBONES), figsize=(9, 3.4))
        figure.subplots_adjust(left=0.07, right=0.98, bottom=0.16, top=0.9, wspace=0.18)
        for panel, (name, backbone) in zip(panels, BACKBONES.items(), strict=True):
            for (contender, label), mark, colour in zip(NAMES.items(), MARKS, SHADES[look], strict=False):
                cells = {tasks: rounds(found[name], contender, tasks, CLIENTS) for tasks in axis(found[name], "tasks")}
                rates = {tasks: middle(visits, "per_second") for tasks, visits in cells.items() if visits}
                panel.plot(list(rates), list(rates.values()), mark, color=colour, label=label)
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_locator(FixedLocator(axis(found[name], "tasks")))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.set(xlabel="tasks", ylabel="requests per second", title=backbone.label)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.25)
        panels[0].legend(loc="lower left")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
