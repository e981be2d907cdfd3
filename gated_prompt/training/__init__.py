# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Tools for training loops: parameter groups, an average of the weights, a record of the gates."""
