# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Measure the server (docs/serving.md) over HTTP, with clients on the same machine.

python examples/measure_server.py grid --kind tiny      times and memory by tasks and clients, the cells that are missing
python examples/measure_server.py grid --kind small --counts 1 16 64 --users 1 8 --seconds 15
python examples/measure_server.py steady                10,000 requests while adapters come and go; a killed replica
python examples/measure_server.py tables                tables and picture of docs/serving.md
"""

import argparse
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "serve" / "results"
CONTENDERS = ("one", "gated", "lora", "full")  # one: the server with one adapter; gated asks some of 64


def main(argv: list[str]) -> None:
    """Run with these arguments."""
    if argv[:1] == ["serve"]:  # what the others start
        serve(*argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("grid", "steady", "tables"))
    parser.add_argument("--kind", choices=("tiny", "small"), default="tiny", help="the backbone")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS, help="what is compared")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of tasks")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32], help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=4, help="of each cell")
    parser.add_argument("--rounds", type=int, default=4, help="visits of each cell")
    parser.add_argument("--wait", action="store_true", help="wait for Enter before anything is timed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/serving"), help="for adapters and logs")
    args = parser.parse_args(argv)
    if args.command == "tables":
        from serve import tables

        tables.main(args.results)
        return
    from serve import load  # noqa: F401, first: gevent replaces parts of what is imported after it

    from gated_prompt import GatedPromptError
    from serve import measured, steady

    try:
        {"grid": measured.main, "steady": steady.main}[args.command](args)
    except GatedPromptError as error:
        sys.exit(f"error: {error}")


def serve(contender: str, *options: str) -> None:
    """Start the server with what one of the contenders computes with."""
    from serve.backbone import load_pool
    from serve.contenders import FullModels, LoraAdapters
    from serve.main import main as start

    start(list(options), {"lora": LoraAdapters, "full": FullModels}.get(contender, load_pool))


if __name__ == "__main__":
    main(sys.argv[1:])
