# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the scripts share: arguments, methods, the training loop, checkpoints, tasks, tables of the paper."""
