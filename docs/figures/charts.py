# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Draws the charts of the pages from committed results and adapters.

python docs/figures/charts.py
"""

import json
import sys
from collections.abc import Mapping, Sequence
from math import ceil, exp, floor
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "examples"))
from drawing import IMAGES, picture, text

import real.records
from demo.adapters import load_collection
from gated_prompt import gates
from gated_prompt.inspect.readouts import find_adapter
from gated_prompt.plots import COLOURS
from real.images import TASKS

ROOT = Path(__file__).parents[2]
MARKERS = (
    "M-5 0 a5 5 0 1 0 10 0 a5 5 0 1 0 -10 0",
    "M-4.5 -4.5 h9 v9 h-9 z",
    "M0 -6 L6 5 H-6 z",
    "M0 -6.5 L6 0 L0 6.5 L-6 0 z",
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 720, 330, 64, 150, 30, 52
Points = Sequence[tuple[int, float]]


def lines(
    title: str, along: str, up: str, series: Mapping[str, Points], step: float, start: float | None = None
) -> str:
    """A line for each series, named at its end; `step`: distance of the horizontal rules; `start`: a dashed one."""
    points = [point for each in series.values() for point in each]
    blocks = range(min(x for x, _ in points), max(x for x, _ in points) + 1)
    low, high = (
        turn(y / step) * step for turn, y in ((floor, min(y for _, y in points)), (ceil, max(y for _, y in points)))
    )
    right, bottom, height = WIDTH - RIGHT, HEIGHT - FOOT, HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - blocks[0]) / max(len(blocks) - 1, 1)
        return round(LEFT + 14 + across * (right - LEFT - 28), 1), round(
            bottom - (y - low) / (high - low) * (bottom - TOP), 1
        )

    parts = []
    for count in range(round((high - low) / step) + 1):
        value = low + count * step
        y = place(0, value)[1]
        parts += [f'<path d="M{LEFT} {y:g} H{right}" class="edge-line" stroke-width="1"/>']
        parts += [text(LEFT - 8, y + 4, f"{value:g}", "soft", 12, anchor="end")]
    parts += [text(place(x, low)[0], bottom + 20, str(x), "soft", 12) for x in blocks]
    parts += [text((LEFT + right) / 2, height - 12, along)]
    parts += [text(18, (TOP + bottom) / 2, up, look=f'transform="rotate(-90 18 {(TOP + bottom) / 2:g})"')]
    if start is not None:
        y = place(0, start)[1]
        parts += [f'<path d="M{LEFT} {y:g} H{right}" class="soft-line" stroke-dasharray="6 4"/>']
        parts += [text(right + 5, y + 4, "start", "soft", 12, anchor="start")]
    ends = sorted((place(*each[-1])[1], name) for name, each in series.items())
    heights: dict[str, float] = {}
    for y, name in ends:  # names keep a distance of one line
        heights[name] = max([y, *(other + 18 for other in heights.values())])
    for (name, each), colour, marker in zip(series.items(), COLOURS, MARKERS, strict=False):
        path = " L".join("{:g} {:g}".format(*place(*point)) for point in each)
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2.5" fill="none"/>')
        marks = [
            f'<path d="{marker}" transform="translate({x:g} {y:g})" fill="{colour}"/>'
            for x, y in (place(*p) for p in each)
        ]
        parts += [
            *marks,
            f'<path d="{marker}" transform="translate({right + 10:g} {heights[name]:g})" fill="{colour}"/>',
        ]
        parts.append(text(right + 22, heights[name] + 4, name, anchor="start"))
    return picture(WIDTH, height, title, parts)


def bars(title: str, panels: Mapping[str, Mapping[str, float]], marked: tuple[str, ...]) -> str:
    """Panels of horizontal bars with their values; bars with a name that starts with one of `marked` stand out."""
    names = list(next(iter(panels.values())))
    left, row, wide, gap = 232, 30, 190, 50
    height = 62 + row * len(names)
    parts = [text(left - 12, 62 + row * count, name, anchor="end") for count, name in enumerate(names)]
    for place, (heading, values) in enumerate(panels.items()):
        x, most = left + place * (wide + gap), max(values.values())
        parts.append(text(x, 28, heading, anchor="start", look='font-weight="600"'))
        for count, (name, value) in enumerate(values.items()):
            y, width = 48 + row * count, round(value / most * wide, 1)
            look = f'fill="{COLOURS[0]}"' if name.startswith(marked) else 'class="edge"'
            parts.append(f'<rect x="{x}" y="{y}" width="{width:g}" height="18" rx="3" {look}/>')
            parts.append(text(x + width + 6, y + 14, f"{value:.1f}", anchor="start"))
    return picture(WIDTH, height, title, parts)


def gates_by_block() -> str:
    """The gates of the demo page's adapters."""
    collection = load_collection()
    series, starts = {}, set()
    for name in collection.adapters:
        adapter = find_adapter(collection.model, name)[1]
        series[name] = list(zip(adapter.gate_rows, gates(collection.model, name).tolist(), strict=True))
        starts.add(1 / (1 + exp(-adapter.config.gate_init)))
    return lines("Gates of trained adapters by block", "block", "gate", series, step=0.05, start=min(starts))


def accuracy_by_block() -> str:
    """Logistic regression on the features of each block of a real backbone."""
    found = real.records.read(ROOT / "examples" / "real" / "results")
    probes = {task: found[task, "probe"]["test"] for task in TASKS if (task, "probe") in found}
    series = {task: [(block, 100 * v) for block, v in enumerate(values, start=1)] for task, values in probes.items()}
    return lines("Accuracy of a linear classifier by block", "read after block", "test accuracy, %", series, step=10)


SPEED = {
    "plain": "frozen ViT, nothing trained",
    "lora": "LoRA, rank 8",
    "gated": "gated prompts",
    "pruned": "gated prompts, pruned",
    "deep": "VPT-deep",
    "research": "usual code of gated prompts",
    "research_deep": "usual code of VPT-deep",
}


def throughput() -> str:
    """Images per second of ViT-S with 100 prompts."""
    table = json.loads((ROOT / "examples/speed/results/cpu.json").read_text())["tables"]["small-100"]
    panels = {
        heading: {label: 8 / median(table[kind][name]) for name, label in SPEED.items()}
        for kind, heading in (("train_step", "training, images/s"), ("forward", "inference, images/s"))
    }
    return bars("Images per second in training and inference", panels, marked=("gated", "VPT"))


def pictures() -> dict[Path, str]:
    """Text of the files."""
    return {
        IMAGES / "gates.svg": gates_by_block(),
        IMAGES / "block_accuracy.svg": accuracy_by_block(),
        IMAGES / "throughput.svg": throughput(),
    }


if __name__ == "__main__":
    for target, svg in pictures().items():
        target.write_text(svg, encoding="utf-8")
