# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From an image to a label map: sliding windows, what is written beside the weights, colours."""
