# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Time and memory of gated prompts compared with the alternatives."""
