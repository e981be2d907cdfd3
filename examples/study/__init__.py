# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What prompts are worth, as docs/benchmark.md says: on a real backbone, in miniature, and in a race of methods."""
