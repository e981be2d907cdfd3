# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""An ONNX file of a segmenter for one size of images, kept only if its outputs match the model's."""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import GatedPromptError
from ...segmentation.sliding_window import scaled_size
from .loading import Segmenters

TOLERANCE = 1e-3  # of logits


class _Map(nn.Module):
    """Logits (B, K, height, width) of pixels (B, 3, height, width)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.module(pixel_values).logits
        return F.interpolate(logits, pixel_values.shape[-2:], mode="bilinear", align_corners=False)


def export_map(group: Segmenters, size: tuple[int, int], file: Path) -> str:
    """Write the file, with a free batch size, for images of the shape of `size` (height, width) scaled as in training.

    Raises:
        GatedPromptError: onnxruntime or onnxscript is missing, or the outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise GatedPromptError(f"--export needs {error.name}: pip install onnx onnxruntime onnxscript") from error
    module = _Map(group).eval()
    height, width = scaled_size(size, group.predictor.preparation["short_side"], group.patch_size)
    window = int(group.predictor.preparation["window"])
    if max(height, width) > window:
        raise GatedPromptError(
            f"--export: images of {size[1]} x {size[0]} pixels are cut into windows of {window}, which one ONNX "
            "file cannot do; give an image that is less oblong"
        )
    draw = torch.Generator().manual_seed(0)
    partial = file.with_suffix(".partial.onnx")
    try:
        torch.onnx.export(
            module,
            (torch.randn(2, 3, height, width, generator=draw),),
            partial,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
        pixels = torch.randn(3, 3, height, width, generator=draw)
        with torch.no_grad():
            wanted = module(pixels)
        found = torch.from_numpy(onnxruntime.InferenceSession(partial).run(None, {"pixel_values": pixels.numpy()})[0])
        worst = float((found - wanted).abs().max())
        if not worst <= TOLERANCE:
            raise GatedPromptError(f"the ONNX file's logits differ from the model's by {worst:.2g}; it was not kept")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return f"{file}: pixels of {width} x {height}; logits differ from the model's by {worst:.1e} at most, on 3 inputs"
