# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The studies: methods on few labelled images (docs/benchmark.md), and the paper's claims in miniature.

python examples/study/run.py race --data_dir FOLDER         the race, what is missing of it
python examples/study/run.py promise --data_dir FOLDER      does an out-of-fold accuracy hold on 20 small tasks?
python examples/study/run.py strangers --data_dir FOLDER    does predict --unlike find images of another kind?
python examples/study/run.py miniature                      the miniature; --data_dir FOLDER adds CIFAR-10 and DTD
python examples/study/run.py check-real --data_dir FOLDER   a part of docs/benchmark.md again, with a new seed
python examples/study/run.py check-miniature                a part of docs/appendix/miniature.md again, with a new seed

Each run adds a record when it is done. A new start continues.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, where the packages are

import torch

from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.sharing.backbone import quiet_loading
from study import check, claims, methods, miniature, race, records, tasks
from study.draws import DRAWS, Pool

NEED_DATA = ("race", "promise", "strangers", "check-real")


def main(argv: list[str] | None = None) -> int:
    """Run with these arguments (None: the command line's) and return the exit status."""
    args = _parse(argv)
    quiet_loading()
    torch.set_num_threads(1)
    outside = COMMANDS[args.command](args)
    if args.command.startswith("check"):
        print(f"{outside} accuracies lie outside")
    return 1 if outside else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__)
    parser.add_argument("command", choices=COMMANDS, help="what to do, see above")
    parser.add_argument("--data_dir", type=Path, help="folder with real_vtab, dtd10, cifar10_jpeg")
    parser.add_argument(
        "--backbone", type=Path, default=Path("runs/dinov2-small-saliency"), help="folder of DINOv2-small"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/study"), help="for features and new records")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all whose data are there")
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="experiments or rows (default: all, or a few for check)"
    )
    parser.add_argument("--draws", nargs="+", type=int, default=list(DRAWS), choices=DRAWS, help="of the race")
    parser.add_argument(
        "--backbones",
        nargs="+",
        default=list(miniature.BACKBONES),
        choices=miniature.BACKBONES,
        help="of the miniature",
    )
    args = parser.parse_args(argv)
    if args.data_dir is None and args.command in NEED_DATA:
        parser.error(f"{args.command} needs --data_dir")
    small = tasks.MINIATURE if args.data_dir is not None else tasks.FREE
    known = {"race": [race.FROZEN, *methods.experiments()], "check-real": check.ROWS}.get(
        args.command, miniature.VARIANTS
    )
    names = tasks.REAL if args.command in NEED_DATA else small
    for what, given, there in (("tasks", args.tasks, names), ("rows", args.rows, known)):
        unknown = [name for name in given or () if name not in there]
        if unknown:
            parser.error(f"unknown --{what} {', '.join(unknown)}. Choose from: {', '.join(there)}.")
    args.tasks = args.tasks or names
    return args


def run_race(args: argparse.Namespace) -> int:
    """The records that are missing, draw by draw, so that all methods have one before any has two."""
    experiments = methods.experiments()
    for number, task in product(args.draws, args.tasks):
        racer = race.Racer(Pool(task, args.data_dir, args.backbone, args.output_dir), methods.HERE / "results")
        for record in racer.frozen(number).values():
            print(race.show(record), flush=True)
        for name in args.rows or experiments:
            if name in experiments:
                print(race.show(racer.trained(experiments[name], number)), flush=True)
    return 0


def run_promise(args: argparse.Namespace) -> int:
    """The records that are missing, task by task in turn."""
    pools = [Pool(task, args.data_dir, args.backbone, args.output_dir) for task in args.tasks]
    done = {(one["task"], one["seed"]) for one in records.read(claims.PROMISE)}
    for seed in range(claims.TASKS):
        pool = pools[seed % len(pools)]
        if (pool.name, seed) not in done:
            record = claims.promise(pool, seed)
            records.append(claims.PROMISE, record)
            print(record, flush=True)
    return 0


def run_strangers(args: argparse.Namespace) -> int:
    """All records again, which takes seconds once the features are there."""
    pools = [Pool(task, args.data_dir, args.backbone, args.output_dir) for task in claims.BLOCKS]
    found = [record for pool in pools for record in claims.strangers(pool, [one for one in pools if one is not pool])]
    claims.STRANGERS.unlink(missing_ok=True)
    for record in found:
        records.append(claims.STRANGERS, record)
        print(record, flush=True)
    return 0


def run_miniature(args: argparse.Namespace) -> int:
    """Two rounds for each row: the learning rates first, then the other seeds with the chosen one."""
    for backbone, task, row in product(args.backbones, args.tasks, args.rows or miniature.VARIANTS):
        file = args.output_dir / f"{backbone}-{task}.jsonl"
        while runs := list(miniature.missing(backbone, task, row, records.read(file))):
            for run in runs:
                record = miniature.execute(run, args.data_dir)
                records.append(file, record)
                print(f"{run}: val {record['val']:.3f}, test {record['test']:.3f}", flush=True)
    return 0


COMMANDS = {
    "race": run_race,
    "promise": run_promise,
    "strangers": run_strangers,
    "miniature": run_miniature,
    "check-real": lambda args: check.check_real(
        args.tasks, args.rows or check.REAL_ROWS, args.data_dir, args.backbone
    ),
    "check-miniature": lambda args: check.check_miniature(
        args.backbones, args.tasks, args.rows or check.MINIATURE_ROWS, args.data_dir
    ),
}


if __name__ == "__main__":
    with mistakes_in_one_line():
        sys.exit(main())
