# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Measure the server over HTTP, with clients on the same machine, for docs/appendix/serving_tables.md.

python examples/serving_load/measure_server.py COMMAND

    memory                resident memory by number of tasks
    grid --backbone tiny  times by number of tasks and clients
    thousand              a thousand tasks against one, on PyTorch and on an engine
    adding                tasks that are added to a running server
    runtimes              PyTorch, an engine and its 8-bit graph, with --run and --images
    steady                minutes of requests while adapters come and go, and one replica killed
    overload              ordinary requests beside an attack by large images
    tables                the tables of docs/appendix/serving_tables.md

Results are saved after every step, and a second call measures only what is missing.
"""

import argparse
import importlib
import signal
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
COMMANDS = {"memory": ("by_tasks", "memory"), "grid": ("by_tasks", "grid")}
COMMANDS |= {name: (name, "main") for name in ("thousand", "adding", "runtimes", "steady", "overload", "tables")}


def main(argv: list[str]) -> None:
    """Run with these arguments."""
    if argv[:1] == ["serve"]:  # what the other commands start
        serve(*argv[1:])
        return
    parser = argparse.ArgumentParser(  # not CommandLine, which would be imported before locust
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=COMMANDS, help="see above")
    parser.add_argument("--backbone", choices=("tiny", "small"), help="measure only this backbone (default: both)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the results (default: examples/serving_load/results)"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/serving"),
        help="folder for adapters and logs (default: %(default)s)",
    )
    parser.add_argument("--run", type=Path, help="output folder of train with the shipped backbone, for runtimes")
    parser.add_argument("--images", type=Path, help="folder of images like those of --run, for runtimes")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the servers are stopped too
    if args.command != "tables":
        importlib.import_module("locust")  # first: gevent replaces parts of what is imported after it
    from gated_prompt import GatedPromptError
    from gated_prompt.sharing.backbone import quiet_loading

    quiet_loading()
    try:
        module, function = COMMANDS[args.command]
        getattr(importlib.import_module(f"serving_load.{module}"), function)(args)
    except GatedPromptError as error:
        sys.exit(f"error: {error}")


def serve(contender: str, *options: str) -> None:
    """Start the server with one of the contenders."""
    from gated_prompt.cli.serve import main as start
    from serving_load.contenders import load_full_models, load_lora

    start(list(options), {"lora": load_lora, "full": load_full_models}.get(contender))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, where the package of this script lies
    main(sys.argv[1:])
