# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What docs/appendix/serving_tables.md says about time and memory: measured over HTTP, clients on the same machine."""
