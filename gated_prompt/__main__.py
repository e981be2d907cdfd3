# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`python -m gated_prompt`, which `accelerate launch -m gated_prompt train ...` starts."""

from .cli import main

if __name__ == "__main__":
    main()
