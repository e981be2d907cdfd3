# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`python -m gated_prompt.convert`, an older name of `gated-prompt convert`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
