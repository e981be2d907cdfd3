# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The demo page, and how its adapters were trained."""
