# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Reproduce a table of the paper: choose learning rates, train with several seeds, compare with the paper's table.

    python examples/reproduce_tables.py --table vtab --backbone backbones/mae-vit-b --vtab_dir vtab-1k --dry_run
    python examples/reproduce_tables.py --table vtab --backbone backbones/mae-vit-b --vtab_dir vtab-1k --stage paper
    python examples/reproduce_tables.py --table fgvc --backbone backbones/moco-vit-b --fgvc_dir data/fgvc \\
        --methods gated lora --address auto --gpus_per_run 0.5

`--dry_run` trains nothing: it reads every split, checks the weights, times a few steps, and says what is missing and
what the table costs. `--stage paper` runs the paper's own settings, those of gated prompts, without a search.

By default, for each row and task, it trains on the 800 images (FGVC: the training split) with every setting that the
row's own publication searched, and evaluates on the 200 (FGVC: the validation split). It then trains with the best
setting (ties: the smaller rate) and every seed on all 1000 images, and evaluates on the test split. All other settings
are the paper's for the task (paper/presets.py). Arguments after `--` go to every run: `-- --num_train_epochs 20`.

Ray Tune schedules the runs, on this machine or on a cluster (`--address auto`; --output_dir, data and code must then
be on a shared file system). `--scheduler serial` runs them one by one. Any number of such processes may share a
folder, as the jobs of a Slurm array do. Each run is an `accelerate launch` of train_vtab.py, train_fgvc.py or
train_ade20k.py. If interrupted, repeat the command: finished runs are skipped, and unfinished ones resume from their
checkpoints. `--scheduler none` only writes the table.

In `--output_dir`: `<table>-<kind>.md` and `.json`, `results/` with one file per run, `runs/` with logs and adapters.
"""

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoConfig

from gated_prompt import GatedPromptError
from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.errors import DataError
from gated_prompt.finetune.methods import backbone_kind
from gated_prompt.finetune.report import write_json
from gated_prompt.finetune.shared_arguments import option
from gated_prompt.sharing.backbone import check_backbone
from gated_prompt.shipped import BACKBONE_HELP, SHIPPED_BACKBONE
from gated_prompt.training.checkpoints import prepare_output_dir
from paper.cost import arguments_of
from paper.dry_run import dry_run
from paper.grids import SEEDS, TABLES, Common, choose, choose_rows, final_run, search_runs
from paper.jobs import Run
from paper.markdown import to_markdown
from paper.presets import KINDS, Choice, Row, Search, Searched, best_of
from paper.records import fingerprint, identity_of, read_records
from paper.schedulers import SCHEDULERS, Resources, run_all
from paper.summary import Records, summarize
from paper.tasks import load_split, splits_of

STAGES = ("all", "paper", "search", "final")


@dataclass
class Arguments:
    """What to run. Folders and --backbone may hold environment variables, which are expanded when a run starts."""

    table: str = option("which table", "vtab", tuple(TABLES))
    tasks: list[str] | None = field(default=None, metadata={"help": "tasks to run (default: all of the table)"})
    methods: list[str] | None = field(
        default=None, metadata={"help": "methods to run (default: those of the paper's table)"}
    )
    stage: str = option(
        "paper (gated prompts with the settings that the paper lists for each task), search (choose learning rates), "
        "final (train with the chosen ones), or all (search, then final)",
        "all",
        STAGES,
    )
    dry_run: bool = option("check data and weights, and say what the table costs", False)
    seeds: list[int] = field(default_factory=lambda: list(SEEDS), metadata={"help": "random seeds for the final runs"})
    backbone: str = option(BACKBONE_HELP, str(SHIPPED_BACKBONE))
    backbone_kind: str = option("auto takes it from the name of --backbone", "auto", ("auto", *KINDS))
    vtab_dir: str | None = option("folder in the vtab-1k layout (default: the Hub)", None)
    fgvc_dir: str | None = option("folder with cub/, nabirds/, flowers/, dogs/, cars/ (default: the Hub)", None)
    ade20k_dir: str | None = option("ADEChallengeData2016 (default: the Hub)", None)
    learning_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "learning rates to search. A single one is not searched (default: those published for each row)"
        },
    )
    search: bool = option("search learning rates. With false, the paper's choice is used", True)
    curve: bool = option("score every epoch of the final runs, and report the best one as well", False)
    output_dir: str = option("folder for all results", "runs/tables")
    scheduler: str = option(
        "ray (this machine or a cluster), serial (one by one), or none (only write the table)", "ray", SCHEDULERS
    )
    address: str | None = option("address of a Ray cluster, or auto (default: this machine)", None)
    cpus_per_run: float = option("CPUs per run", 1)
    gpus_per_run: float | None = option("GPUs per run, a fraction to share one (default: 1 if available)", None)
    retries: int = option("how often to retry a failed run", 2)
    mixed_precision: str = option("no is float32, as published", "no", ("no", "bf16", "fp16"))


def check_extra(runs: Sequence[Run]) -> None:
    """Parse the arguments of every run before the first one starts.

    Raises:
        GatedPromptError: the table itself sets an argument after `--`, or the arguments contradict each other.
    """
    for run in {(run.script, run.arguments["method"], run.arguments["task"]): run for run in runs}.values():
        names = {*run.arguments, "learning_rate", "output_dir", "resume_from_checkpoint"}
        own = [text for text in run.extra if text[:2] == "--" and text[2:].split("=")[0].replace("-", "_") in names]
        if own:
            raise GatedPromptError(f"{own[0]} after -- is set by the table for each run. Leave it out.")
        arguments_of(run)


def check_sources(args: Arguments) -> None:
    """Check folders and backbone once, rather than in every run.

    Raises:
        GatedPromptError: a folder does not exist, or the backbone cannot be loaded.
    """
    for name in ("vtab_dir", "fgvc_dir", "ade20k_dir"):
        folder = getattr(args, name)
        if folder is not None and not Path(os.path.expandvars(folder)).is_dir():
            raise GatedPromptError(f"--{name} {folder!r} is not a folder. Leave it out to use the Hub.")
    check_backbone(os.path.expandvars(args.backbone))
    try:
        AutoConfig.from_pretrained(os.path.expandvars(args.backbone))
    except (OSError, ValueError) as error:
        raise GatedPromptError(
            f"cannot load --backbone {args.backbone!r}. Give a folder with a model, or a reachable Hub id "
            f"({str(error).splitlines()[0]})."
        ) from error


def identify(common: Common, tasks: Sequence[str]) -> tuple[Common, dict[str, str]]:
    """Read weights and data, so that no record of others counts. Also what is wrong with them, by task.

    Raises:
        GatedPromptError: the backbone has no weights.
    """
    data: dict[str, dict[str, str]] = {}
    faults: dict[str, str] = {}
    for task in tasks:
        folder = common.folder_of(task)
        try:
            with warnings.catch_warnings(action="ignore"):
                parts = [load_split(task, folder and os.path.expandvars(folder), each) for each in splits_of(task)]
            data[task] = {split: fingerprint(part) for split, part in zip(splits_of(task), parts, strict=True)}
        except (DataError, ImportError) as error:
            faults[task] = str(error)
    return replace(common, weights=identity_of(common.backbone), data=data), faults


def choice_of(run: Run) -> Choice:
    """The setting of a search that a run has."""
    return {name: float(run.arguments[name]) for name in ("learning_rate", "weight_decay")}


def tried(common: Common, row: Row, task: str, search: Search, records: Records) -> list[Searched]:
    """What is known of a search, in the order of its choices."""
    found = []
    for run in search_runs(common, row, task, search):
        result = records.get(run.key, {})
        percent = None if result.get("accuracy") is None else 100 * result["accuracy"]
        found.append(Searched(choice_of(run), percent, bool(result.get("diverged"))))
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the table, write and print it. Return 1 if results are missing, else 0."""
    argv = sys.argv[1:] if argv is None else argv
    own, extra = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    (args,) = CommandLine([Arguments], __doc__).parse(own)

    # Choose the runs.
    table = TABLES[args.table]
    tasks = choose("task", args.tasks, table.tasks)
    kind = backbone_kind(args.backbone, args.backbone_kind)
    rows = choose_rows(args.table, kind, args.methods)
    if args.stage == "paper" and table.own is not None:
        rows = [row for row in rows if row.name == table.own]
    if args.learning_rates:
        rows = [replace(row, search=Search("given", tuple(args.learning_rates))) for row in rows]
    searched = args.search and table.search and args.stage != "paper"
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
        curve=args.curve,
    )
    resources = Resources(args.cpus_per_run, gpus, args.retries, args.address)
    check_extra([final_run(common, row, task, args.seeds[0], None) for row in rows for task in tasks])
    if args.scheduler != "none" or args.dry_run:
        check_sources(args)
    folder = prepare_output_dir(args.output_dir).resolve()
    known = [task for task in tasks if task != "ade20k"]
    if args.dry_run:
        return dry_run(common, rows, tasks, args.seeds, searched, folder / f"{args.table}-{kind}-dry_run")
    common, faults = identify(common, known)
    for task, fault in faults.items():
        print(f"the runs of {task} are left out, for its data failed: {fault}")
    ready = [(row, task) for row in rows for task in tasks if task not in faults]

    # Search the learning rates, then run the reported runs.
    grids = {(row.name, task): search_runs(common, row, task, row.search) if searched else [] for row, task in ready}
    if args.stage != "final":
        search = [run for runs in grids.values() if len(runs) > 1 for run in runs]
        if search:
            print(f"search: {len(search)} runs")
            run_all(search, folder, args.scheduler, resources)
    records = read_records(folder)
    results: dict[tuple[str, str], list[Searched]] = {}
    finals: dict[tuple[str, str, int], Run] = {}
    for row, task in ready:
        runs = grids[row.name, task]
        choice = choice_of(runs[0]) if runs else None
        if len(runs) > 1:
            results[row.name, task] = tried(common, row, task, row.search, records)
            choice = best_of(results[row.name, task])
            if choice is None:  # incomplete, or all diverged
                continue
        finals |= {(row.name, task, seed): final_run(common, row, task, seed, choice) for seed in args.seeds}
    if args.stage != "search":
        print(f"final: {len(finals)} runs")
        run_all(list(finals.values()), folder, args.scheduler, resources)

    # Write the table.
    summary = summarize(args.table, table, kind, rows, tasks, args.seeds, finals, read_records(folder), results)
    summary["faults"] = faults
    summary["settings"] = {
        "backbone": SHIPPED_BACKBONE.name if args.backbone == str(SHIPPED_BACKBONE) else args.backbone,
        "learning_rates": args.learning_rates,
        "extra": extra,
        "mixed_precision": args.mixed_precision,
        "command": shlex.join(["python", "examples/reproduce_tables.py", *argv]),
    }
    text, file = to_markdown(summary), folder / f"{args.table}-{kind}{'-paper' if args.stage == 'paper' else ''}.json"
    write_json(file, summary)
    file.with_suffix(".md").write_text(text)
    print(f"{text}\nwritten to {file} and {file.with_suffix('.md').name}")
    complete = all(map(best_of, results.values())) and not faults if args.stage == "search" else summary["complete"]
    return 0 if complete else 1


if __name__ == "__main__":
    with mistakes_in_one_line():
        sys.exit(main())
