# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The comparison on a real backbone (docs/real.md).

python examples/real_backbone.py run --data_dir FOLDER       the cells that are missing
python examples/real_backbone.py starts --data_dir FOLDER    what untrained prompts do to the features
python examples/real_backbone.py cost                        seconds and megabytes of a training step
python examples/real_backbone.py tables                      tables of docs/real.md
python examples/real_backbone.py check --data_dir FOLDER     a part again, compared with the committed results
"""

import sys
from pathlib import Path

import torch

from gated_prompt.command_line import CommandLine, mistakes_in_one_line
from gated_prompt.training.quiet import quiet_loading
from real import check, cost, grid, images, miniature, run, starts, tables

COMMANDS = {
    "run": run.main,
    "starts": starts.main,
    "cost": cost.main,
    "miniature": miniature.main,
    "tables": tables.main,
    "check": check.main,
}


def main(argv: list[str] | None = None) -> int:
    """Run with these arguments and return the exit status; None: those of the command line."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("command", choices=COMMANDS, help="what to do, see above")
    parser.add_argument(
        "--backbone", type=Path, default=Path("runs/dinov2-small-saliency"), help="folder of DINOv2-small"
    )
    parser.add_argument("--data_dir", type=Path, help="folder with real_vtab, dtd10, cifar10_jpeg")
    parser.add_argument(
        "--results", type=Path, default=run.RESULTS, help="where the results are; default: those of docs/real.md"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/real"), help="for frozen features")
    parser.add_argument(
        "--tasks", nargs="*", default=list(images.TASKS), choices=images.TASKS, metavar="TASK", help="data sets"
    )
    parser.add_argument(
        "--rows",
        nargs="*",
        default=None,
        choices=list(grid.ROWS),
        metavar="ROW",
        help="rows of real/grid.py; default: all, or a few for check",
    )
    args = parser.parse_args(argv)
    if args.data_dir is None and args.command in ("run", "starts", "miniature", "check"):
        parser.error(f"{args.command} needs --data_dir")
    quiet_loading()
    torch.set_num_threads(1)
    return COMMANDS[args.command](args) or 0


if __name__ == "__main__":
    with mistakes_in_one_line():
        sys.exit(main())
