# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a model does with its last tokens: which modules are its head, and whether that head reads token 0."""

from torch import nn

HEAD_NAMES = (
    "classifier",
    "cls_classifier",
    "distillation_classifier",
    "head",
    "head_dist",
    "decode_head",
    "auxiliary_head",
)
READERS_OF_TOKEN_0 = ("Model", "ModelWithProjection", "ForImageClassification", "ForImageClassificationWithTeacher")


def find_head_names(root: nn.Module) -> list[str]:
    """Dotted names of the heads on `root`, or on the model that it wraps; empty when there are none.

    An attention pool is no head: it belongs to the pretrained backbone, whatever its name.
    """
    holders = [("", root)] + [(f"{n}.", m) for n, m in root.named_children() if n == "timm_model"]
    return [
        prefix + name
        for prefix, holder in holders
        for name, child in holder.named_children()
        if name in HEAD_NAMES and any(True for _ in child.parameters()) and not _is_attention_pool(child)
    ]


def pooling_obstacle(root: nn.Module, num_prefix_tokens: int) -> str | None:
    """Why a mean written into token 0 would not reach the head of `root`, or None if it does.

    Heads that read token 0 beside other tokens (DeiT, DINOv2) count as reading it. Of classes outside transformers
    nothing is known but timm's `global_pool`, so without that their author is trusted to have asked for what works.
    """
    name, config = type(root).__name__, getattr(root, "config", None)
    if num_prefix_tokens == 0:
        return f"{name} has no prefix token whose place the mean could take"
    global_pool = getattr(getattr(root, "timm_model", root), "global_pool", "token")
    if global_pool != "token":
        return f"{name} pools with global_pool={global_pool!r}, so its head does not read token 0"
    if type(root).__module__.startswith("transformers.") and not name.endswith(READERS_OF_TOKEN_0):
        return f"{name} reads the patch tokens, not token 0"
    mean_of_patches = name == "CLIPForImageClassification"  # told apart by nothing but its forward
    if getattr(config, "use_mean_pooling", False) or mean_of_patches:
        return f"{name} reads the mean of the patch tokens, not token 0"
    return None


def _is_attention_pool(head: nn.Module) -> bool:
    return any(isinstance(m, nn.MultiheadAttention) for m in head.modules())
