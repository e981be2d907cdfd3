# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a model is made of: its blocks, their attention, prefix tokens and heads, found by structure."""

from .heads import find_head_names
from .vision_transformer import AttentionParts, VisionTransformer, find_vision_transformer

__all__ = ["AttentionParts", "VisionTransformer", "find_head_names", "find_vision_transformer"]
