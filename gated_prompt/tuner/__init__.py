# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What happens in a forward, and how it is put on a model."""
