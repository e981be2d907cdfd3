# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One ONNX graph of a backbone for any number of adapters, which are inputs of it, and a runtime without torch."""
