# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What prompts are worth: on a real backbone (docs/real.md), in miniature (docs/miniature.md), and in a race."""
