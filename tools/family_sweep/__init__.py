# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Try gated prompts on every vision class of the installed transformers, and on models of timm."""
