# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Start serve.py: what is launched as a script cannot import relatively, so the code lies beside it."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/, as for the scripts that lie there

from demo.page import build_page, load_collection
from demo.serve import launch, main

__all__ = ["build_page", "launch", "load_collection", "main"]

if __name__ == "__main__":
    main()
