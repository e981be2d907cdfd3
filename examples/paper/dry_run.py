# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a table needs before it is run: its data, its weights, and what it costs."""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gated_prompt.data import ade20k
from gated_prompt.data.vtab import TASKS as VTAB
from gated_prompt.errors import DataError
from gated_prompt.finetune.report import environment, write_json
from gated_prompt.images import ImageFiles
from gated_prompt.sharing.backbone import quiet_loading
from gated_prompt.transforms import to_pixels

from .cost import A100, REACHED, STEPS, Cost, Speed, cost_of, time_steps
from .grids import Common, final_run, search_runs
from .jobs import Run
from .markdown import lines
from .presets import Row
from .records import check_weights
from .tasks import fgvc_transform_for, load_split, num_classes_of, published_sizes, splits_of, transform_for

LOOKED_AT = 1000  # images of a split whose EXIF is read
TURNED = 0x0112  # EXIF's orientation; 1 is upright
PIXELS = 3 * 4  # bytes of a pixel that is kept in memory


@dataclass
class TaskReport:
    """What was found of one task: by split counts and state, what is wrong, and seconds to decode an image.

    `absent`: there is no folder of this task at all.
    """

    task: str
    counts: dict[str, int] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    turned: tuple[int, int] = (0, 0)
    decode_seconds: float = 0.0
    missing: list[str] = field(default_factory=list)
    small: dict[str, str] = field(default_factory=dict)
    absent: bool = False

    @property
    def faults(self) -> list[str]:
        """One line for each fault, and one for all splits that are too small. Without any data, the first fault."""
        if self.absent:
            return []
        small = ", ".join(f"{split} {counts}" for split, counts in self.small.items())
        lines = [f"{self.task}: fewer images than the benchmark has ({small})"] if small else []
        return lines + [f"{self.task}: {fault}" for fault in self.missing[: None if self.counts else 1]]

    @property
    def cells(self) -> list[str]:
        """Its part of the table."""
        there = bool(self.counts)
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        turned = f"{self.turned[0]} of {self.turned[1]}" if there else ""
        decode = f"{1000 * self.decode_seconds:.1f}" if there else ""
        return [counts or "missing", ", ".join(sorted(set(self.states.values()))), turned, decode]


def dry_run(
    common: Common, rows: Sequence[Row], tasks: Sequence[str], seeds: Sequence[int], searched: bool, file: Path
) -> int:
    """Check everything, write and print one table (.md and .json). Return 1 if something is missing."""
    quiet_loading()
    weights = check_weights(os.path.expandvars(common.backbone))
    speeds: dict[str, Speed] = {}
    reports: dict[str, TaskReport] = {}
    cells, total, count = [], Cost(), 0
    for task in tasks:
        reports[task] = report = check_data(task, common)
        own, runs_here = Cost(), 0
        for row in rows:
            runs = runs_of(common, row, task, seeds, searched)
            if row.method not in speeds:
                speeds[row.method] = time_steps(runs[-1], num_classes_of(task))
            own += cost_of(runs, {**published_sizes(task), **report.counts}, speeds[row.method])
            runs_here += len(runs)
        total, count = total + own, count + runs_here
        cells.append([task, *report.cells, str(runs_here), f"{own.hours:.2f}"])
    missing = [*_absent(common, reports), *(fault for report in reports.values() for fault in report.faults)]
    missing += weights.faults
    head = ["task", "images", "state", "EXIF turns", "decode, ms", "runs", "hours"]
    text = lines(head, *cells, ["all", *[""] * 4, str(count), f"{total.hours:.2f}"])
    notes = [weights.text(), *_notes(common, reports.values(), speeds, total)]
    notes.append("Missing:\n\n" + "\n".join(f"- {fault}" for fault in missing) if missing else "Nothing is missing.")
    page = f"{text}\n" + "\n\n".join(notes) + "\n"
    content = {
        "tasks": {task: vars(report) for task, report in reports.items()},
        "weights": vars(weights),
        "speed": {method: vars(speed) for method, speed in speeds.items()},
        "runs": count,
        "hours": round(total.hours, 3),
        "a100_hours": round(total.a100_hours, 3),
        "device": environment()["device"],
        "missing": missing,
    }
    write_json(file.with_suffix(".json"), content)
    file.with_suffix(".md").write_text(page)
    print(page)
    return 1 if missing else 0


def runs_of(common: Common, row: Row, task: str, seeds: Sequence[int], searched: bool) -> list[Run]:
    """The runs of a row on a task: those of its search, if it has one, and those that are reported."""
    search = search_runs(common, row, task, row.search) if searched else []
    return [*(search if len(search) > 1 else []), *(final_run(common, row, task, seed, None) for seed in seeds)]


def _notes(common: Common, reports: Iterable[TaskReport], speeds: dict[str, Speed], total: Cost) -> list[str]:
    precision = "float32" if common.mixed_precision == "no" else common.mixed_precision
    on_gpu, peak = torch.cuda.is_available(), max((speed.peak_mib for speed in speeds.values()), default=0)
    side = transform_for(os.path.expandvars(common.backbone), "dtd").size
    kept = max((report.counts.get("train800val200", 0) for report in reports), default=0) * PIXELS * side**2 / 2**20
    device = environment()["device"]
    hours = f"Hours: extrapolated from {STEPS} steps of each method in {precision} on {device}, not run."
    if not on_gpu:
        hours += (
            f" An A100 in bf16 would take about {total.a100_hours:.1f} hours if it reached {REACHED:.0%} of its "
            f"{A100 / 1e12:.0f} TFLOPS, which is assumed and not measured."
        )
    return [
        hours + " Where images are missing, the benchmark's own numbers of images count.",
        f"Peak memory: {peak} MiB "
        + ("of the GPU, with whole batches. " if on_gpu else "of this process, with small batches. ")
        + (f"VTAB's training images take {kept:.0f} MiB more in main memory. " if kept else "")
        + f"Disk: about {total.disk / 2**20:.0f} MiB.",
        "EXIF turns: images that viewers rotate. As in the published runs, they are not rotated here.",
    ]


def check_data(task: str, common: Common) -> TaskReport:
    """Read every split of a task and decode one image of each."""
    report, folder = TaskReport(task), common.folder_of(task)
    place = folder and os.path.expandvars(folder)
    prepare = _preparation(task, os.path.expandvars(common.backbone))
    for split in splits_of(task):
        try:
            with warnings.catch_warnings(action="ignore"):
                data = _load(task, place, split)
            report.counts[split], report.states[split] = len(data), data.provenance.state
            begin = time.perf_counter()
            prepare(data[len(data) // 2][0])
            report.decode_seconds = max(report.decode_seconds, time.perf_counter() - begin)
            turned, looked = count_turned(data.images)
            report.turned = report.turned[0] + turned, report.turned[1] + looked
            if data.provenance.expected_count not in (None, len(data)):
                report.small[split] = f"{len(data)} of {data.provenance.expected_count}"
        except (DataError, ImportError) as error:
            report.missing.append(f"{split}: {error}")
    report.absent = bool(place) and not report.counts and not _has_folder(task, Path(str(place)))
    return report


def _preparation(task: str, backbone: str) -> Callable[[Image.Image], Any]:
    if task == "ade20k":
        return to_pixels
    return transform_for(backbone, task) if task in VTAB else fgvc_transform_for(backbone, train=False)


def _load(task: str, folder: str | None, split: str) -> Any:
    if task == "ade20k":
        return ade20k.load_folder(folder, split) if folder else ade20k.load_hub(split)
    return load_split(task, folder, split)


def count_turned(images: Any) -> tuple[int, int]:
    """How many of the images would be turned by their EXIF orientation, and how many were looked at."""
    if not isinstance(images, ImageFiles):
        return 0, 0
    step = max(1, len(images) // LOOKED_AT)
    paths, turned = images.paths[::step], 0
    for path in paths:
        try:
            with Image.open(path) as image:
                turned += image.getexif().get(TURNED, 1) != 1
        except (OSError, SyntaxError, ValueError):
            raise DataError(f"The image {path} is missing or cannot be read.") from None
    return turned, len(paths)


def _has_folder(task: str, place: Path) -> bool:
    return any((place / part / task).is_dir() for part in ("", "vtab-1k")) if task in VTAB else place.is_dir()


def _absent(common: Common, reports: Mapping[str, TaskReport]) -> list[str]:
    """One line for all tasks that have no folder."""
    names = [task for task, report in reports.items() if report.absent]
    if not names:
        return []
    place = common.vtab_dir if names[0] in VTAB else common.fgvc_dir
    return [f"{', '.join(names)}: no folders of these names in {place}. docs/data.md says what belongs there."]
