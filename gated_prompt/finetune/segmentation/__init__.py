# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`gated-prompt train` on images with label maps."""
