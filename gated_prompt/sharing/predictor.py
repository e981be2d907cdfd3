# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The former place of `gated_prompt.predictor`: the code in model cards that are published imports it from here."""

from ..predictor import Predictor, preparation_of, read_predictor

__all__ = ["Predictor", "preparation_of", "read_predictor"]
