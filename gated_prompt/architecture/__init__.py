# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Find the parts of a model by its structure: blocks, attention, prefix tokens and heads."""

from .attention import AttentionParts
from .heads import find_head_names
from .vision_transformer import VisionTransformer, find_vision_transformer

__all__ = ["AttentionParts", "VisionTransformer", "find_head_names", "find_vision_transformer"]
