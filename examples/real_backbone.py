# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The comparison on a real backbone (docs/real.md).

python examples/real_backbone.py run --backbone FOLDER --data_dir FOLDER     the cells that are missing
python examples/real_backbone.py tables                                      tables and pictures of docs/real.md
python examples/real_backbone.py check --backbone FOLDER --data_dir FOLDER   a part again, against the committed
python examples/real_backbone.py cost --backbone FOLDER                      seconds and megabytes of a step
"""

import sys

from real import check, cost, run, starts, tables

COMMANDS = {"run": run.main, "tables": tables.main, "check": check.main, "cost": cost.main, "starts": starts.main}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"{__doc__}\nerror: the first argument must be one of {', '.join(COMMANDS)}")
    COMMANDS[sys.argv[1]](sys.argv[2:])
