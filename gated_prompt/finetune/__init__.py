# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What train_images.py and predict.py are made of: images, probes, the race, measures, report."""
