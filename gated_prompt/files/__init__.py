# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The files of an adapter. Nothing here depends on models."""
