# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Try gated prompts on every vision class of the installed transformers, and on models of timm."""

import importlib.util
import sys
from typing import Any

import torch

_KEPT: list[Any] = []


def _declare_operators() -> None:
    """Make torchvision importable if its compiled part does not fit this torch: timm needs the rest only.

    On import it describes two operators that only the compiled part defines. transformers imports it as well, so this
    comes first.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_declare_operators()
