# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The former place of `gated_prompt.images`: the code in model cards that are published imports `decode` from here."""

from ..images import ImageFiles, Images, InexactDataWarning, LabelledImages, Provenance, decode, to_rgb

__all__ = ["ImageFiles", "Images", "InexactDataWarning", "LabelledImages", "Provenance", "decode", "to_rgb"]
