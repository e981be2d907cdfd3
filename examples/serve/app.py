# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Start main.py, which imports relatively and so cannot be launched as a script."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, as for the scripts in that folder

    from serve.main import main

    main()
