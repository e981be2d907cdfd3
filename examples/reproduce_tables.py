# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Reproduce a table of the paper: choose learning rates, train with several seeds, compare with the paper's table.

    python examples/reproduce_tables.py --table vtab --backbone backbones/mae-vit-b --vtab_dir data/vtab-1k
    python examples/reproduce_tables.py --table fgvc --backbone backbones/moco-vit-b --fgvc_dir data/fgvc \\
        --methods gated lora --address auto --gpus_per_run 0.5 --mixed_precision bf16

For each row and task, it trains on the 800 images (FGVC: the training split) with every learning rate of the paper's
grid and evaluates on the 200 (FGVC: the validation split). It then trains with the best rate (ties: the smaller) and
every seed on all 1000 images, and evaluates on the test split. All other settings are the paper's for the task
(recipe/presets.py). Arguments after `--` are passed to every run: `-- --num_train_epochs 20`.

Ray Tune schedules the runs, on this machine or on a cluster (`--address auto`; --output_dir, data and code must then
be on a shared file system). `--scheduler serial` runs them one by one. Each run is an `accelerate launch` of
train_vtab.py, train_fgvc.py or train_ade20k.py. If interrupted, repeat the command: finished runs are skipped, and
unfinished ones resume from their checkpoints. `--scheduler none` only writes the table.

In `--output_dir`: `<table>-<kind>.md` and `.json`, `results/` with one file per run, `runs/` with logs and adapters.
"""

import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from gated_prompt import GatedPromptError
from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.finetune.methods import backbone_kind
from gated_prompt.finetune.reporting import write_json
from gated_prompt.sharing.backbone import check_backbone
from gated_prompt.shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from gated_prompt.training.checkpoints import prepare_output_dir
from paper.arguments import parse_arguments
from paper.grids import (
    LEARNING_RATES,
    SEEDS,
    TABLES,
    Common,
    Row,
    choose,
    choose_rows,
    final_run,
    search_runs,
)
from paper.jobs import Run, read_records
from paper.schedulers import SCHEDULERS, Resources, run_all
from paper.summary import summarize, to_markdown

SHIPPED = f"examples/backbones/{SHIPPED_BACKBONE.name}"


@dataclass
class Arguments:
    """What to run. Folders and --backbone may hold environment variables, which are expanded when a run starts."""

    table: str = field(default="vtab", metadata={"help": f"one of: {', '.join(TABLES)}"})
    tasks: list[str] | None = field(default=None, metadata={"help": "tasks to run; default: all of the table"})
    methods: list[str] | None = field(
        default=None, metadata={"help": "methods to run; default: those of the paper's table"}
    )
    seeds: list[int] = field(default_factory=lambda: list(SEEDS), metadata={"help": "random seeds for the final runs"})
    backbone: str = field(default=SHIPPED, metadata={"help": BACKBONE_HELP})
    backbone_kind: str = field(default="auto", metadata={"help": "mae or moco; auto: from the name of --backbone"})
    vtab_dir: str | None = field(default=None, metadata={"help": "folder in the vtab-1k layout; default: the Hub"})
    fgvc_dir: str | None = field(
        default=None, metadata={"help": "folder with cub/, nabirds/, flowers/, dogs/, cars/; default: the Hub"}
    )
    ade20k_dir: str | None = field(default=None, metadata={"help": "ADEChallengeData2016; default: the Hub"})
    learning_rates: list[float] = field(
        default_factory=lambda: list(LEARNING_RATES),
        metadata={"help": "learning rates to search; a single one: no search"},
    )
    search: bool = field(default=True, metadata={"help": "search learning rates; false: the paper's choice"})
    output_dir: str = field(default="runs/tables", metadata={"help": "folder for all results"})
    scheduler: str = field(default="ray", metadata={"help": f"one of: {', '.join(SCHEDULERS)}"})
    address: str | None = field(
        default=None, metadata={"help": "address of a Ray cluster, or auto; default: this machine"}
    )
    cpus_per_run: float = field(default=1, metadata={"help": "CPUs per run"})
    gpus_per_run: float | None = field(
        default=None, metadata={"help": "GPUs per run, a fraction to share one; default: 1 if available"}
    )
    retries: int = field(default=2, metadata={"help": "how often to retry a failed run"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})


def check_extra(runs: Sequence[Run]) -> None:
    """Parse the arguments of every run before the first one starts.

    Raises:
        GatedPromptError: the table itself sets an argument after `--`, or the arguments contradict each other.
    """
    for run in {(run.script, run.arguments["method"], run.arguments["task"]): run for run in runs}.values():
        names = {*run.arguments, "learning_rate", "output_dir", "resume_from_checkpoint"}
        own = [text for text in run.extra if text[:2] == "--" and text[2:].split("=")[0].replace("-", "_") in names]
        if own:
            raise GatedPromptError(f"{own[0]} after -- is set by the table for each run; leave it out")
        if run.script != "train_ade20k.py":
            script = importlib.import_module(run.script.removesuffix(".py"))
            parse_arguments(script.Arguments, run.argv(), lambda args: str(args.task))


def check_sources(args: Arguments) -> None:
    """Check folders and backbone once, rather than in every run.

    Raises:
        GatedPromptError: a folder does not exist, or the backbone cannot be loaded.
    """
    for name in ("vtab_dir", "fgvc_dir", "ade20k_dir"):
        folder = getattr(args, name)
        if folder is not None and not Path(os.path.expandvars(folder)).is_dir():
            raise GatedPromptError(f"--{name} {folder!r} is not a folder; leave it out to use the Hub")
    check_backbone(os.path.expandvars(args.backbone))
    try:
        AutoConfig.from_pretrained(os.path.expandvars(args.backbone))
    except (OSError, ValueError) as error:
        raise GatedPromptError(
            f"cannot load --backbone {args.backbone!r}; give a folder with a model, or a reachable Hub id "
            f"({str(error).splitlines()[0]})"
        ) from error


def choose_rates(
    common: Common, rows: Sequence[Row], tasks: Sequence[str], rates: Sequence[float], records: dict[str, Any]
) -> dict[tuple[str, str], float]:
    """Return the best learning rate of each (row, task) whose search is complete; ties: the smaller one."""
    best = {}
    for row in rows:
        for task in tasks:
            found = [records.get(run.key) for run in search_runs(common, row, task, rates)]
            if all(found):
                ranked = [(-result["accuracy"], rate) for result, rate in zip(found, rates, strict=True) if result]
                best[row.name, task] = min(ranked)[1]
    return best


def main(argv: list[str] | None = None) -> int:
    """Run the table, write and print it; return 1 if results are missing, else 0."""
    argv = sys.argv[1:] if argv is None else argv
    own, extra = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    (args,) = CommandLine([Arguments], __doc__).parse(own)

    # Choose the runs.
    table = TABLES[choose("table", [args.table], tuple(TABLES))[0]]
    tasks = choose("task", args.tasks, table.tasks)
    kind = backbone_kind(args.backbone, args.backbone_kind)
    rows = choose_rows(table, kind, args.methods)
    gpus = args.gpus_per_run if args.gpus_per_run is not None else float(torch.cuda.is_available())
    common = Common(
        backbone=args.backbone,
        kind=kind,
        vtab_dir=args.vtab_dir,
        fgvc_dir=args.fgvc_dir,
        ade20k_dir=args.ade20k_dir,
        extra=tuple(extra),
        processes=max(1, int(gpus)),
        mixed_precision=args.mixed_precision,
    )
    resources = Resources(args.cpus_per_run, gpus, args.retries, args.address)
    check_extra([final_run(common, row, task, args.seeds[0], None) for row in rows for task in tasks])
    if args.scheduler != "none":
        check_sources(args)
    folder = prepare_output_dir(args.output_dir).resolve()

    # Search the learning rates, then run the reported runs.
    rates: dict[tuple[str, str], float | None] = {(row.name, task): None for row in rows for task in tasks}
    if args.search and table.search:
        rates = dict.fromkeys(rates, args.learning_rates[0])
        if len(args.learning_rates) > 1:
            search = [
                run for row in rows for task in tasks for run in search_runs(common, row, task, args.learning_rates)
            ]
            print(f"search: {len(search)} runs")
            run_all(search, folder, args.scheduler, resources)
            rates = dict(choose_rates(common, rows, tasks, args.learning_rates, read_records(folder)))
    finals = {
        (row.name, task, seed): final_run(common, row, task, seed, rates[row.name, task])
        for row in rows
        for task in tasks
        for seed in args.seeds
        if (row.name, task) in rates
    }
    print(f"final: {len(finals)} runs")
    run_all(list(finals.values()), folder, args.scheduler, resources)

    # Write the table.
    summary = summarize(args.table, table, kind, rows, tasks, args.seeds, finals, read_records(folder))
    summary["settings"] = {
        "backbone": args.backbone,
        "learning_rates": args.learning_rates if args.search and table.search else None,
        "extra": extra,
        "mixed_precision": args.mixed_precision,
        "command": shlex.join(["python", "examples/reproduce_tables.py", *argv]),
    }
    text, file = to_markdown(summary), folder / f"{args.table}-{kind}.json"
    write_json(file, summary)
    file.with_suffix(".md").write_text(text)
    print(f"{text}\nwritten to {file} and {file.with_suffix('.md').name}")
    return 0 if summary["complete"] else 1


if __name__ == "__main__":
    with mistakes_in_one_line():
        sys.exit(main())
