# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune on your own images: `train`, `probe_blocks`, and the parts that they and `gated-prompt train` share."""

from .api import BlockProbes, TrainResult, probe_blocks, train

__all__ = ["BlockProbes", "TrainResult", "probe_blocks", "train"]
