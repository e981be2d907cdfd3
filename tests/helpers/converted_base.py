"""Load a converted backbone, which has no head, into a model with one."""

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import ViTForImageClassification

from .models import build


@cache
def transformers_can() -> bool:
    """Whether this transformers loads its own `ViTModel` folder into a `ViTForImageClassification`; 5.9.0 does not."""
    with tempfile.TemporaryDirectory() as folder:
        build("ViTModel", "ViTConfig").save_pretrained(folder)
        _, info = ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    return set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}


def load_base(folder: str | Path, dtype: torch.dtype = torch.float32) -> ViTForImageClassification:
    if not transformers_can():
        pytest.skip("this version of transformers does not load any ViTModel into a ViTForImageClassification")
    model, info = ViTForImageClassification.from_pretrained(
        folder, num_labels=5, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    return model
