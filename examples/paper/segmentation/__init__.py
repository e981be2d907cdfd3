# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""SETR-PUP on a plain ViT: model, data, inference and scores."""
