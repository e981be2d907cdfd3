# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Start training.py: what is launched as a script cannot import relatively, so the code lies beside it."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, as for the scripts that lie there

    from demo.training import main
    from gated_prompt.command_line import mistakes_in_one_line

    with mistakes_in_one_line():
        main()
