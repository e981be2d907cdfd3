# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What prompts are worth on a real backbone and real benchmark images: DINOv2-small, four tasks (docs/real.md)."""
