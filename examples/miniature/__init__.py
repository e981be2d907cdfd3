# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's comparisons on a CPU; docs/miniature.md shows the results."""
