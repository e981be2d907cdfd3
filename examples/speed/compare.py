# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Launch comparison.py, which uses relative imports and so cannot be run as a script itself."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, as for the scripts in that folder

    from gated_prompt.command_line import mistakes_in_one_line
    from speed.comparison import main

    with mistakes_in_one_line():
        main()
