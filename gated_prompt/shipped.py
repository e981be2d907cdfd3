# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The small backbone that the package ships, the default of its commands."""

from pathlib import Path

SHIPPED_BACKBONE = Path(__file__).parent / "backbones" / "mae-cifar10-tiny"
BACKBONE_HELP = "Hub id or folder of a ViT (default: the small ViT that the package ships)"
