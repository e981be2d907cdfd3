# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The backbone without a head, for `AdapterPool`."""

from typing import Any

from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, AutoModelForImageClassification

from .. import heads
from ..errors import GatedPromptError
from ..sharing.backbone import check_backbone
from ..training.quiet import quiet_loading
from .pool import AdapterPool


def load_backbone(backbone: str) -> Any:
    """A classifier without its last layer, or, where transformers has no classifier for it, the bare backbone.

    Raises:
        GatedPromptError: it cannot be loaded.
    """
    check_backbone(backbone)
    try:
        if type(AutoConfig.from_pretrained(backbone)) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:  # DINOv3, MAE
            return heads.load_backbone(backbone)
        return AutoModelForImageClassification.from_pretrained(
            backbone, num_labels=0, ignore_mismatched_sizes=True, dtype="float32"
        )
    except (OSError, ValueError) as error:
        raise GatedPromptError(f"cannot load --backbone {backbone!r}: {str(error).splitlines()[0]}") from error


def load_pool(backbone: str, memory: int, image_side: int) -> AdapterPool:
    """A pool for adapters of this backbone, which take at most `memory` bytes and images of at most this side.

    Raises:
        GatedPromptError: the backbone cannot be loaded, or takes no prompts.
    """
    quiet_loading()  # here, as each replica is a process of its own
    return AdapterPool(load_backbone(backbone), memory, backbone_name=backbone, image_side=image_side)
