# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The tuner: how prompts are attached to a model, and what they do during a forward."""
