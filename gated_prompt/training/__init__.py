# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a training loop uses beside the optimizer."""
