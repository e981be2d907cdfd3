# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What gated-prompt train and gated-prompt predict are made of: images, probes, the race, measures, report."""
