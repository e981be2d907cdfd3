# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Many adapters on one frozen backbone, loaded on request: the basis of a server."""
