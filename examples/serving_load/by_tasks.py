# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Times and memory of a server by its number of tasks."""

from argparse import Namespace
from contextlib import ExitStack

from gated_prompt import GatedPromptError

from . import plan, records
from .started import Started, started, under_load


def grid(args: Namespace) -> None:
    """Times by number of tasks and of clients, where they are missing."""
    for backbone in [args.backbone] if args.backbone else plan.BACKBONES:
        times(backbone, args)


def times(backbone: str, args: Namespace) -> None:
    """Measure what is missing with this backbone, every server running all the time.

    Raises:
        GatedPromptError: requests failed.
    """
    path = args.results / f"{backbone}.json"
    results = records.read(path)
    found = results.setdefault("cells", {})
    left = [(number, cell) for number, cell in plan.visits(backbone) if len(found.get(cell.key, [])) <= number]
    if not left:
        return
    results |= {"machine": records.machine(), "seconds": plan.SECONDS[backbone]}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = {}
        for name in dict.fromkeys(cell.contender for _, cell in left):
            options = plan.options(backbone, name, args.output_dir)
            servers[name] = stack.enter_context(started(name, args.output_dir / f"{name}.log", options))
            servers[name].load(max(plan.COUNTS))
        for number, cell in left:
            row = under_load(servers[cell.contender].url, cell.tasks, cell.clients, plan.SECONDS[backbone])
            if row["failures"] or not row["requests"]:
                raise GatedPromptError(
                    f"{cell.key}: requests failed ({row}). See the servers' logs in {args.output_dir}."
                )
            found.setdefault(cell.key, []).append(row)
            print(number, cell.key, row, flush=True)
            records.save(path, results)


CLIENTS, LONG, SHORT = 32, 20.0, 5.0  # seconds of load before anything is read, and before each further reading


def memory(args: Namespace) -> None:
    """Resident memory of the replica with the full load on it, where it is missing."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for backbone in [args.backbone] if args.backbone else plan.BACKBONES:
        path = args.results / f"{backbone}.json"
        results = records.read(path)
        found = results.setdefault("memory", {})
        for contender in plan.CONTENDERS:
            counts = [1] if contender == plan.ONE else plan.COUNTS
            if any(f"{contender} {count}" not in found for count in counts):
                options = plan.options(backbone, contender, args.output_dir)
                with started(contender, args.output_dir / f"{contender}.log", options) as server:
                    found |= {f"{contender} {count}": size for count, size in sizes(server, counts).items()}
                print(backbone, contender, found, flush=True)
                records.save(path, results)


def sizes(server: Started, counts: list[int]) -> dict[int, float]:
    """Megabytes by number of tasks: each task is loaded at its first request.

    The first load is longest, as what activations take grows with the load, not with the tasks.
    """
    found = {}
    under_load(server.url, 1, CLIENTS, LONG)
    for count in counts:
        server.load(count)
        under_load(server.url, count, CLIENTS, SHORT)
        found[count] = round(server.megabytes(), 1)
    return found
