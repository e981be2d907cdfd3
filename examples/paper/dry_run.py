# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a table needs before it is run: data, weights, and what it costs, from a few steps that are timed here."""

import importlib
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from gated_prompt.data.vtab import TASKS as VTAB
from gated_prompt.errors import DataError
from gated_prompt.finetune.report import environment, write_json
from gated_prompt.images import ImageFiles, LabelledImages
from gated_prompt.sharing.backbone import quiet_loading

from .arguments import parse_arguments
from .classification import build
from .grids import Common, final_run, search_runs
from .jobs import Run
from .markdown import lines
from .presets import Row
from .records import check_weights
from .tasks import Task, fgvc_transform_for, load_split, splits_of, transform_for

LOOKED_AT = 1000  # images of a split whose EXIF is read
TURNED = 0x0112  # EXIF's orientation; 1 is upright
CPU_BATCH, STEPS = 4, 2  # on a processor. A GPU times whole batches


@dataclass
class TaskReport:
    """What was found of one task: by split counts and state, what is wrong, and seconds to decode an image."""

    task: str
    counts: dict[str, int] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    turned: tuple[int, int] = (0, 0)
    decode_seconds: float = 0.0
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Speed:
    """Seconds of a training and of an evaluated image, trained parameters, and peak memory in MiB."""

    train: float
    eval: float
    parameters: int
    peak_mib: int


def dry_run(
    common: Common, rows: Sequence[Row], tasks: Sequence[str], seeds: Sequence[int], searched: bool, file: Path
) -> int:
    """Check everything, write and print one table (.md and .json). Return 1 where something is missing."""
    quiet_loading()
    weights = check_weights(os.path.expandvars(common.backbone))
    reports = {task: check_data(task, common) for task in tasks if task != "ade20k"}
    speeds: dict[str, Speed] = {}
    cells, total_runs, total_hours, disk = [], 0, 0.0, 0
    for task, report in reports.items():
        hours, count = 0.0, 0
        for row in rows:
            runs = search_runs(common, row, task, row.search) if searched else []
            runs = runs if len(runs) > 1 else []
            runs += [final_run(common, row, task, seed, None) for seed in seeds]
            if row.method not in speeds:
                speeds[row.method] = time_steps(runs[-1], len(report.counts) and _classes(task, common))
            count += len(runs)
            hours += sum(_seconds(run, report, speeds[row.method]) for run in runs) / 3600
            disk += len(runs) * (4 * speeds[row.method].parameters if row.method != "full" else 0)
        total_runs, total_hours = total_runs + count, total_hours + hours
        cells.append([task, *_texts(report), str(count), f"{hours:.2f}"])
    device = environment()["device"]
    precision = "float32" if common.mixed_precision == "no" else common.mixed_precision
    head = ["task", "images", "state", "turned by EXIF, not here", "decode, ms", "missing", "runs", "hours"]
    text = lines(head, *cells, ["all", *[""] * 5, str(total_runs), f"{total_hours:.2f}"])
    missing = [f"{task}: {what}" for task, report in reports.items() for what in report.missing]
    missing += weights.faults
    if "ade20k" in tasks:
        missing.append(
            "ade20k: its images and hours are not checked here; start with train_ade20k.py --max_train_steps 10"
        )
    kept = max((report.counts.get("train800val200", 0) for report in reports.values()), default=0) * 3 * 224**2 * 4
    notes = [
        weights.text(),
        f"Hours: extrapolated from {STEPS} steps of each method in {precision} on {device}; not run.",
        f"Peak memory: {max((s.peak_mib for s in speeds.values()), default=0)} MiB; VTAB's training images take "
        f"{kept / 2**20:.0f} MiB more in main memory. Disk: about {(disk + total_runs * 300_000) / 2**20:.0f} MiB.",
        f"Missing: {'; '.join(missing) or 'nothing'}.",
    ]
    page = f"{text}\n" + "\n\n".join(notes) + "\n"
    write_json(
        file.with_suffix(".json"),
        {
            "tasks": {task: vars(report) for task, report in reports.items()},
            "weights": vars(weights),
            "speed": {method: vars(speed) for method, speed in speeds.items()},
            "runs": total_runs,
            "hours": round(total_hours, 3),
            "device": device,
            "missing": missing,
        },
    )
    file.with_suffix(".md").write_text(page)
    print(page)
    return 1 if missing else 0


def check_data(task: str, common: Common) -> TaskReport:
    """Read every split of a task and decode one image of each."""
    report, folder = TaskReport(task), common.folder_of(task)
    transform = transform_for(common.backbone, task) if task in VTAB else fgvc_transform_for(common.backbone, False)
    turned = looked = 0
    for split in splits_of(task):
        try:
            with warnings.catch_warnings(action="ignore"):
                data = load_split(task, folder and os.path.expandvars(folder), split)
            report.counts[split], report.states[split] = len(data), data.provenance.state
            begin = time.perf_counter()
            transform(data[len(data) // 2][0])
            report.decode_seconds = max(report.decode_seconds, time.perf_counter() - begin)
            more = count_turned(data)
            turned, looked = turned + more[0], looked + more[1]
            if data.provenance.expected_count not in (None, len(data)):
                report.missing.append(f"{split} has {len(data)} of {data.provenance.expected_count} images")
        except (DataError, ImportError) as error:
            report.missing.append(f"{split}: {error}")
    report.turned = turned, looked
    return report


def count_turned(data: LabelledImages) -> tuple[int, int]:
    """How many of the images would be turned by their EXIF orientation, and how many were looked at."""
    if not isinstance(data.images, ImageFiles):
        return 0, 0
    step = max(1, len(data) // LOOKED_AT)
    paths, turned = data.images.paths[::step], 0
    for path in paths:
        try:
            with Image.open(path) as image:
                turned += image.getexif().get(TURNED, 1) != 1
        except (OSError, SyntaxError, ValueError):
            raise DataError(f"The image {path} is missing or cannot be read.") from None
    return turned, len(paths)


def _classes(task: str, common: Common) -> int:
    folder = common.folder_of(task)
    with warnings.catch_warnings(action="ignore"):
        return load_split(task, folder and os.path.expandvars(folder), splits_of(task)[-1]).num_classes


def time_steps(run: Run, classes: int) -> Speed:
    """Time a few steps of a run and of its evaluation on random images."""
    script = importlib.import_module(run.script.removesuffix(".py"))
    args, prompts = parse_arguments(script.Arguments, run.argv(), lambda args: str(args.task))
    labels = [str(index) for index in range(classes or 2)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(args, prompts, Task(str(args.task), labels, None, None)).to(device)  # type: ignore[arg-type]
    batch = args.per_device_train_batch_size if device.type == "cuda" else CPU_BATCH
    side = transform_for(args.backbone, "dtd").size
    pixels = torch.randn(batch, 3, side, side, device=device)
    targets = torch.zeros(batch, dtype=torch.long, device=device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.mixed_precision)

    def step(train: bool) -> None:
        with torch.set_grad_enabled(train), torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(pixels).logits, targets)
        if train:
            loss.backward()

    def seconds(train: bool) -> float:
        model.train(train)
        step(train)  # the first one is slower
        begin = _now(device)
        for _ in range(STEPS):
            step(train)
        return (_now(device) - begin) / STEPS / batch

    train, evaluate = seconds(True), seconds(False)
    return Speed(train, evaluate, sum(p.numel() for p in trained), environment()["peak_memory_mib"])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(run: Run, report: TaskReport, speed: Speed) -> float:
    """How long a run takes on the device that was timed."""
    script = importlib.import_module(run.script.removesuffix(".py"))
    args, _ = parse_arguments(script.Arguments, run.argv(), lambda args: str(args.task))
    train = report.counts.get(str(run.arguments.get("train_split", "train")), 0)
    tested = report.counts.get(str(run.arguments["eval_split"]), 0)
    batch = args.per_device_train_batch_size
    looks = args.num_train_epochs if run.arguments.get("curve") else 1
    trained = args.num_train_epochs * ceil(train / batch) * batch
    return trained * speed.train + looks * tested * speed.eval


def _texts(report: TaskReport) -> list[str]:
    states = ", ".join(sorted(set(report.states.values()))) or "-"
    turned, looked = report.turned
    counts = ", ".join(f"{split} {count}" for split, count in report.counts.items())
    decode = f"{1000 * report.decode_seconds:.1f}"
    return [counts, states, f"{turned} of {looked}", decode, str(len(report.missing) or "")]
