# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""An ONNX file of one predictor, of classes or of label maps, kept only if its outputs match the model's."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import GatedPromptError
from ..predictor import Predictor
from ..segmentation.predictor import MaskPredictor, segmenter_of
from ..segmentation.sliding_window import scaled_size
from .predictions import Group

TOLERANCE = 1e-3  # of logits
CHECKED = 5  # random inputs


class _First(nn.Module):
    """Logits of the only predictor of a group: (B, K), or (B, K, height, width) as large as the pixels."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.module(pixel_values)[:, 0]
        if logits.ndim == 2:
            return logits
        return F.interpolate(logits, pixel_values.shape[-2:], mode="bilinear", align_corners=False)


def check_export(adapters: int) -> None:
    """Refuse an export that would fail, before a backbone is loaded.

    Raises:
        GatedPromptError: there are several predictors, or a library is missing.
    """
    if adapters != 1:
        raise GatedPromptError("--export takes one of --adapters")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise GatedPromptError(f"--export needs {', '.join(missing)}: pip install {' '.join(missing)}")


def export(group: Group[Predictor], file: Path) -> str:
    """Write the file of a predictor of classes, labels or numbers, and return what to tell the user.

    Raises:
        GatedPromptError: the outputs differ.
    """
    side = group.first.transform()(Image.new("RGB", (64, 64))).shape[-1]
    return _write(group, (side, side), file)


def export_map(group: Group[MaskPredictor], size: tuple[int, int], file: Path) -> str:
    """Write the file of a segmenter for images of the shape of `size` (height, width), scaled as in training.

    Raises:
        GatedPromptError: such images are cut into windows, or the outputs differ.
    """
    preparation = group.first.preparation
    height, width = scaled_size(size, preparation["short_side"], segmenter_of(group.module.model).patch_size)
    window = int(preparation["window"])
    if max(height, width) > window:
        raise GatedPromptError(
            f"--export: images of {size[1]} x {size[0]} pixels are cut into windows of {window}, which one ONNX "
            "file cannot do. Give an image that is closer to a square."
        )
    return _write(group, (height, width), file)


def _write(group: Group[Predictor] | Group[MaskPredictor], size: tuple[int, int], file: Path) -> str:
    """Write the file with a free batch size, and compare it on random pixels of `size` (height, width).

    Its metadata hold the names of the classes, the problem, and how images become pixels.
    """
    import onnx
    import onnxruntime

    module = _First(group.module).eval()
    draw = torch.Generator().manual_seed(0)
    partial = file.with_suffix(".partial.onnx")
    try:
        torch.onnx.export(
            module,
            (torch.randn(2, 3, *size, generator=draw),),
            partial,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
        model = onnx.load(partial)
        onnx.helper.set_model_props(model, metadata(group.first))
        onnx.save(model, partial)
        pixels = torch.randn(CHECKED, 3, *size, generator=draw)
        with torch.no_grad():
            wanted = module(pixels)
        found = torch.from_numpy(onnxruntime.InferenceSession(partial).run(None, {"pixel_values": pixels.numpy()})[0])
        worst = float((found - wanted).abs().max())
        if not worst <= TOLERANCE:
            raise GatedPromptError(f"the ONNX file's logits differ from the model's by {worst:.2g}. It was not kept.")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return (
        f"{file}: pixels of {size[1]} x {size[0]}. Logits differ from the model's by {worst:.1e} at most, on "
        f"{CHECKED} random inputs."
    )


def metadata(predictor: Predictor | MaskPredictor) -> dict[str, str]:
    """What an ONNX file says beside its weights, each value as JSON: `names`, `problem`, `mean`, `std`, sizes."""
    values = {"names": predictor.names, "problem": predictor.problem, **predictor.preparation}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
