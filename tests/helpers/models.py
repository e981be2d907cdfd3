"""Tiny random models, one line each, built from configs without any download."""

from contextlib import AbstractContextManager
from typing import Any

import torch
import transformers

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
PIXELS = {"image_size": 32, "patch_size": 8}


def bank_of(model: Any) -> Any:
    """The bank on a model that `get_peft_model` returned."""
    return model.base_model.model.gated_prompt


def build(name: str, config: str, **settings: object) -> torch.nn.Module:
    """A model of this transformers class with random weights, in eval mode; the same weights every time."""
    torch.manual_seed(0)
    settings = {**TINY, **PIXELS, "num_labels": 5, **settings}
    model = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
    for parameter in model.parameters():  # fresh models have zero biases and position embeddings
        parameter.data.normal_(std=0.1) if parameter.ndim < 2 else parameter.data.normal_(std=0.2)
    return model


def vit(**settings: object) -> torch.nn.Module:
    return build("ViTForImageClassification", "ViTConfig", **settings)


def dinov2(**settings: object) -> torch.nn.Module:
    return build("Dinov2ForImageClassification", "Dinov2Config", **settings)


def images(batch: int = 2, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def in_sequence(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Keep the prompts of `model` in the token sequence of every block, without passive blocks."""
    from gated_prompt.tuner.bank import find_bank  # here: models are made without the package as well
    from gated_prompt.tuner.request import Request, requested

    return requested(Request(find_bank(model), in_sequence=True))
