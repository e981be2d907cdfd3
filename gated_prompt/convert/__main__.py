# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`python -m gated_prompt.convert`, an older name of `gated-prompt convert`."""

import sys
from importlib import import_module

if __name__ == "__main__":
    sys.exit(
        import_module("gated_prompt.cli.convert").main()
    )  # by its name: imports point downwards, and it lies above
