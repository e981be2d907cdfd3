# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Draws what the method is for: many tasks on one frozen backbone, and what a server of them takes.

python tools/figures/many_tasks.py
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples")]
from drawing import IMAGES, picture, text
from gated_prompt.plots import COLOURS
from plotting import HEIGHT, WIDTH, Panel, line_parts
from serving_load.plan import BACKBONES
from serving_load.tables import NAMES, axis, megabytes, middle, read, rounds

RESULTS = Path(__file__).parents[2] / "examples" / "serving_load" / "results"
BACKBONE, CLIENTS = "small", 8
TASKS = {"birds": "wren", "roofs": "slate", "leaves": "rust"}  # words that show what a task is
STRIP = 170  # height of the drawing above the charts


def batch() -> list[str]:
    """Images of several tasks go through one backbone together. Each brings its prompts and gets its answer."""
    parts = []
    for count, (task, answer) in enumerate(TASKS.items()):
        y, colour = 44 + 40 * count, COLOURS[count]
        parts += [
            text(94, y + 4, task, anchor="end"),
            *(
                f'<rect x="{108 + 15 * n}" y="{y - 6}" width="11" height="11" class="block edge-line"/>'
                for n in range(6)
            ),
            *(f'<rect x="{204 + 15 * n}" y="{y - 6}" width="11" height="11" fill="{colour}"/>' for n in range(2)),
            f'<path d="M240 {y} H266" class="soft-line" fill="none"/>',
            f'<path d="M470 {y} H502" class="soft-line" fill="none"/>',
            f'<rect x="502" y="{y - 14}" width="58" height="28" rx="6" fill="{colour}"/>',
            text(531, y + 4, "head", look='fill="#ffffff" style="fill:#ffffff"', size=12),
            text(572, y + 4, answer, anchor="start"),
        ]
    parts += [
        '<rect x="266" y="20" width="204" height="128" rx="10" class="block edge-line"/>',
        text(368, 80, "one frozen ViT", look='font-weight="600"', size=15),
        text(368, 102, "one pass for the whole batch", "soft", 12),
        text(150, 160, "patches", "soft", 12),
        text(219, 160, "prompts", "soft", 12),
        text(531, 160, "one per task", "soft", 12),
    ]
    return parts


def charts() -> list[str]:
    """Memory of the server, and images that it answers, by the number of tasks."""
    results = read(RESULTS)[BACKBONE]
    memory, speed = {}, {}
    for contender, label in NAMES.items():
        found = {tasks: megabytes(results, contender, tasks) for tasks in axis(results, "tasks")}
        memory[label] = {tasks: value / 1000 for tasks, value in found.items() if value is not None}
        visits = {tasks: rounds(results, contender, tasks, CLIENTS) for tasks in axis(results, "tasks")}
        speed[label] = {tasks: middle(some, "per_second") for tasks, some in visits.items() if some}
    panels = [Panel(memory, 2, "memory of the server, GB", reach=[0]), Panel(speed, 2, "images per second", reach=[0])]
    return line_parts("tasks", BACKBONES[BACKBONE].label, panels)


def pictures() -> dict[Path, str]:
    """Text of the file."""
    title = "Images of many tasks share one pass of one frozen ViT, so memory stays flat as tasks are added"
    below = [f'<g transform="translate(0 {STRIP})">', *charts(), "</g>"]
    return {IMAGES / "many_tasks.svg": picture(WIDTH, STRIP + HEIGHT, title, [*batch(), *below])}


if __name__ == "__main__":
    for target, svg in pictures().items():
        target.write_text(svg, encoding="utf-8")
