# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune on own images: `train`, `probe_blocks`, and what they and `gated-prompt train` are made of."""

from .api import BlockProbes, TrainResult, probe_blocks, train

__all__ = ["BlockProbes", "TrainResult", "probe_blocks", "train"]
