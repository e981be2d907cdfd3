# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The backbone without a head, as `AdapterPool` wants it."""

from typing import Any

from transformers import AutoModelForImageClassification

from gated_prompt import GatedPromptError
from gated_prompt.serving.pool import AdapterPool
from recipe.backbone import check_backbone


def load_backbone(backbone: str) -> Any:
    """A classifier without its last layer: it gives features.

    Raises:
        GatedPromptError: it cannot be loaded.
    """
    check_backbone(backbone)
    try:
        return AutoModelForImageClassification.from_pretrained(
            backbone, num_labels=0, ignore_mismatched_sizes=True, dtype="float32"
        )
    except (OSError, ValueError) as error:
        raise GatedPromptError(f"cannot load --backbone {backbone!r}: {str(error).splitlines()[0]}") from error


def load_pool(backbone: str, memory: int) -> AdapterPool:
    """A pool of adapters on this backbone.

    Raises:
        GatedPromptError: it cannot be loaded, or takes no prompts.
    """
    return AdapterPool(load_backbone(backbone), memory, backbone_name=backbone)
