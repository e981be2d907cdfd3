# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Times by number of tasks and of clients."""

from argparse import Namespace
from contextlib import ExitStack

from gated_prompt import GatedPromptError

from . import made, plan, records
from .clients import under_load
from .started import started


def main(args: Namespace) -> None:
    """Measure what is missing."""
    for backbone in [args.backbone] if args.backbone else made.BACKBONES:
        measure(backbone, args)


def measure(backbone: str, args: Namespace) -> None:
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
                raise GatedPromptError(f"{cell.key}: requests failed ({row}); {args.output_dir} has the servers' logs")
            found.setdefault(cell.key, []).append(row)
            print(number, cell.key, row, flush=True)
            records.save(path, results)
