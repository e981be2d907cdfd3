# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""An ONNX file of one predictor, kept only if its outputs match the model's."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import GatedPromptError
from .scorers import Group

TOLERANCE = 1e-3  # of logits


class _First(nn.Module):
    """Logits (B, K) of the only predictor of a group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.module(pixel_values)
        return logits[:, 0]


def export(groups: Sequence[Group], file: Path) -> str:
    """Write the file with a free batch size, compare it on random pixels, and report the largest difference.

    Raises:
        GatedPromptError: there are several predictors, onnxruntime or onnxscript is missing, or the outputs differ.
    """
    if len(groups) != 1 or len(groups[0].members) != 1:
        raise GatedPromptError("--export takes one of --adapters")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise GatedPromptError(f"--export needs {error.name}: pip install onnx onnxruntime onnxscript") from error
    module = _First(groups[0].module).eval()
    side = groups[0].first.transform()(Image.new("RGB", (64, 64))).shape[-1]
    draw = torch.Generator().manual_seed(0)
    partial = file.with_suffix(".partial.onnx")
    try:
        torch.onnx.export(
            module,
            (torch.randn(2, 3, side, side, generator=draw),),
            partial,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
        pixels = torch.randn(5, 3, side, side, generator=draw)
        with torch.no_grad():
            wanted = module(pixels)
        found = torch.from_numpy(onnxruntime.InferenceSession(partial).run(None, {"pixel_values": pixels.numpy()})[0])
        worst = float((found - wanted).abs().max())
        if not worst <= TOLERANCE:
            raise GatedPromptError(f"the ONNX file's logits differ from the model's by {worst:.2g}; it was not kept")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return f"{file}: logits differ from the model's by {worst:.1e} at most, on 5 random inputs"
