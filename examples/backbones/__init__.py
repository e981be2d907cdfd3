# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the scripts share that make the small backbones in this folder."""
