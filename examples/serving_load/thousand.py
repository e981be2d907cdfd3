# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Servers of a thousand tasks and of one under the same load, on PyTorch and on an engine."""

from argparse import Namespace
from contextlib import ExitStack

from gated_prompt import GatedPromptError

from . import plan, records
from .started import Row, started, under_load

COUNTS, CLIENTS = (1, 1000), 8
ROUNDS = {"tiny": 7, "small": 3}  # each visits the four servers once, so a slow minute hits all alike
SECONDS = {"tiny": 8.0, "small": 16.0}  # of each visit


def main(args: Namespace) -> None:
    """Measure what is missing."""
    path = args.results / "thousand.json"
    results = records.read(path)
    for backbone in [args.backbone] if args.backbone else plan.BACKBONES:
        if backbone not in results:
            results["machine"] = records.machine()
            results[backbone] = measured(backbone, args)
            records.save(path, results)


def measured(backbone: str, args: Namespace) -> dict[str, object]:
    """Rounds, and megabytes of each replica after them, by runtime and number of tasks.

    Raises:
        GatedPromptError: requests failed.
    """
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rounds: dict[str, list[Row]] = {}
    with ExitStack() as stack:
        servers = {}
        for runtime in plan.RUNTIMES:
            for count in COUNTS:
                options = plan.served(runtime, backbone, count, args.output_dir)
                log = args.output_dir / f"{runtime}-{count}.log"
                server = servers[f"{runtime} {count}"] = stack.enter_context(started("gated", log, options))
                server.load(count)
        for number in range(ROUNDS[backbone]):
            for key, server in servers.items():
                row = under_load(server.url, 0, CLIENTS, SECONDS[backbone])
                if row["failures"] or not row["requests"]:
                    raise GatedPromptError(f"{key}: requests failed ({row}). See the logs in {args.output_dir}.")
                rounds.setdefault(key, []).append(row)
                print(backbone, number, key, row, flush=True)
        sizes = {key: round(server.megabytes(), 1) for key, server in servers.items()}
    return {"seconds": SECONDS[backbone], "clients": CLIENTS, "rounds": rounds, "megabytes": sizes}
