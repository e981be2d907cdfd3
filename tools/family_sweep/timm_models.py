# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A list of timm's models, tiny."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from .tiny import Inputs, varied

SETTINGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
NAMES = [
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch14_dinov2",
    "deit_tiny_distilled_patch16_224",
    "deit3_base_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_siglip_gap_224",
    "vit_so400m_patch14_siglip_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_dinov3",
    "vit_base_patch16_dinov3_qkvb",
    "vit_base_patch16_rope_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_base_patch16_rope_reg1_gap_256",
    "vit_betwixt_patch16_rope_reg4_gap_256",
    "vit_pe_core_base_patch16_224",
    "vit_pe_spatial_base_patch16_512",
    "vit_base_patch16_reg4_gap_256",
    "vit_base_patch16_xp_224",
    "vit_base_patch16_rpn_224",
    "vit_medium_patch16_gap_240",
    "vit_relpos_base_patch16_224",
    "vit_relpos_base_patch16_clsgap_224",
    "vit_srelpos_small_patch16_224",
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_224",
    "eva02_base_patch16_clip_224",
    "eva_giant_patch14_224",
    "eva_large_patch14_196",
    "beit_base_patch16_224",
    "beitv2_base_patch16_224",
    "beit3_base_patch16_224",
    "flexivit_base",
    "naflexvit_base_patch16_gap",
    "aimv2_large_patch14_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "volo_d1_224",
    "swin_tiny_patch4_window7_224",
    "mixer_b16_224",
    "resmlp_12_224",
    "resnet18",
]


def names() -> list[str]:
    """The names under which the sweep tries these models. None where timm is missing."""
    return [f"timm/{name}" for name in NAMES] if importable() else []


def importable() -> bool:
    """Whether timm can be imported."""
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


def build(name: str) -> nn.Module:
    """The model with timm's own class and options for this name, as small as it lets itself be made."""
    import timm

    last: Exception | None = None
    for dropped in ((), ("patch_size",), ("embed_dim", "num_heads", "patch_size"), ("img_size", "patch_size"),
                    tuple(k for k in SETTINGS if k != "num_classes")):  # fmt: skip
        torch.manual_seed(0)
        try:
            return varied(timm.create_model(name, **{k: v for k, v in SETTINGS.items() if k not in dropped}))
        except (TypeError, RuntimeError, AssertionError) as error:
            last = error
    raise last or RuntimeError(name)


def candidates(model: nn.Module) -> Iterator[tuple[str, Callable[[], Inputs]]]:
    """Two images, by the name of the argument in timm."""
    for size in (32, 64, 224):
        pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        yield "images", lambda pixels=pixels: {"x": pixels}
