# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the scripts of the paper's benchmarks share: tasks, presets, grids and tables."""
