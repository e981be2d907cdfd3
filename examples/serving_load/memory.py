# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Resident memory of the replica by number of tasks, with the full load on it."""

from argparse import Namespace

from . import made, plan, records
from .clients import under_load
from .started import Started, started

CLIENTS, LONG, SHORT = 32, 20.0, 5.0  # seconds of load before anything is read, and before each further reading


def main(args: Namespace) -> None:
    """Measure what is missing."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for backbone in [args.backbone] if args.backbone else made.BACKBONES:
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
