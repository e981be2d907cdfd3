# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The comparison on a real backbone (docs/real.md).

    python examples/real_backbone.py run --backbone FOLDER --data_dir FOLDER    # the cells that are missing
"""

import sys

from real import run

if __name__ == "__main__":
    commands = {"run": run.main}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(f"{__doc__}\nthe first argument must be one of {', '.join(commands)}")
    commands[sys.argv[1]](sys.argv[2:])
