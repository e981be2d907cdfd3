# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""An ONNX file of one predictor, kept only if its outputs match the model's."""

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import GatedPromptError
from ..predictor import Predictor
from .predictions import Group

TOLERANCE = 1e-3  # of logits


class _First(nn.Module):
    """Logits (B, K) of the only predictor of a group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.module(pixel_values)
        return logits[:, 0]


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


def export(groups: Sequence[Group], file: Path) -> str:
    """Write the file with a free batch size, compare it on random pixels, and report the largest difference.

    Its metadata hold the names of the classes, the problem, and how images become pixels.

    Raises:
        GatedPromptError: the outputs differ.
    """
    import onnx
    import onnxruntime

    ((predictor,),) = (group.members.values() for group in groups)
    module = _First(groups[0].module).eval()
    side = predictor.transform()(Image.new("RGB", (64, 64))).shape[-1]
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
        model = onnx.load(partial)
        onnx.helper.set_model_props(model, metadata(predictor))
        onnx.save(model, partial)
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


def metadata(predictor: Predictor) -> dict[str, str]:
    """What an ONNX file says beside its weights, each value as JSON: `names`, `problem`, `mean`, `std`, sizes."""
    values = {"names": predictor.names, "problem": predictor.problem, **predictor.preparation}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
