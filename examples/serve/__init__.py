# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A server of many adapters on one frozen backbone, on Ray Serve; see docs/serving.md."""
