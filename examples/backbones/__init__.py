# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Code shared by the scripts that create the small backbones in this folder."""
