# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Extract the adapter from a run checkpoint of the paper's official code.

    enc.prompt_embeddings        (1, P, D)       enc.gate_logit              (G,), of blocks 0 .. G-1
    enc.deep_prompt_embeddings   (L - 1, P, D)   enc.temp                    (L,)
    head.last_layer.weight/bias  (C, D), (C,)

The file records neither the class that ran (MAE or MoCo v3) nor its pooling.
"""

from dataclasses import replace

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import ViTForImageClassification

from ..config import GatedPromptConfig
from ..errors import ConversionError
from ..files.layout import BANK, GATE_LOGITS, PREFIX, TEMPERATURES, TOKENS
from .layouts import Encoder
from .vit import Architecture

PROMPTS, DEEP_PROMPTS, GATES, TEMPS = (
    f"enc.{name}" for name in ("prompt_embeddings", "deep_prompt_embeddings", "gate_logit", "temp")
)
HEAD_WEIGHT, HEAD_BIAS = "head.last_layer.weight", "head.last_layer.bias"
DEEP_IGNORES = "the official code does not use it with deep prompts"
SURPLUS = "entries beyond the number of blocks, which no block used"


def official_adapter(
    run: dict[str, torch.Tensor], depth: int, width: int, pooling: str | None
) -> tuple[GatedPromptConfig, dict[str, torch.Tensor], dict[str, str]]:
    """Return the adapter's config, its tensors by adapter-file key, and the reason for each tensor left out.

    `run` maps the names above to tensors.

    Raises:
        ConversionError: a tensor is missing, or its shape does not match the encoder.
    """
    missing = [name for name in (PROMPTS, HEAD_WEIGHT, HEAD_BIAS) if name not in run]
    if missing:
        raise ConversionError(f"the run checkpoint lacks {', '.join(missing)}. Expected a complete `last_model.pth`.")
    deep, dropped = DEEP_PROMPTS in run, {}
    count = run[PROMPTS].shape[1] if run[PROMPTS].ndim == 3 else 0
    labels = run[HEAD_WEIGHT].shape[0] if run[HEAD_WEIGHT].ndim == 2 else 0
    shapes: dict[str, tuple[int, ...]] = {
        PROMPTS: (1, count, width),
        DEEP_PROMPTS: (depth - 1, count, width),
        HEAD_WEIGHT: (labels, width),
        HEAD_BIAS: (labels,),
    }
    for name, shape in shapes.items():
        if name in run and (tuple(run[name].shape) != shape or 0 in shape):
            raise ConversionError(f"{name} has shape {tuple(run[name].shape)}, expected {shape} without zeros")
    values = {TOKENS: torch.cat((run[PROMPTS], run[DEEP_PROMPTS])) if deep else run[PROMPTS]}
    for name, key, enough in ((GATES, GATE_LOGITS, 1), (TEMPS, TEMPERATURES, depth)):
        if name not in run:
            continue
        if deep:
            dropped[name] = DEEP_IGNORES
            continue
        if run[name].ndim != 1 or len(run[name]) < enough:
            raise ConversionError(f"{name} has shape {tuple(run[name].shape)}, expected at least ({enough},)")
        if len(run[name]) > depth:
            dropped[f"{name}[{depth}:]"] = SURPLUS
        values[key] = run[name][:depth]
    gated = len(values[GATE_LOGITS]) if GATE_LOGITS in values else None
    config = GatedPromptConfig(
        num_virtual_tokens=count,
        deep=deep,
        gates=deep or gated is not None,  # deep prompts ignore it: keep the default
        gated_blocks=None if gated in (None, depth - 1) else list(range(gated)),
        temperature=TEMPERATURES in values,
        pooling=pooling,
    )
    tensors = {f"{PREFIX}{BANK}.{name}": value for name, value in values.items()}
    tensors |= {f"{PREFIX}classifier.weight": run[HEAD_WEIGHT], f"{PREFIX}classifier.bias": run[HEAD_BIAS]}
    return config, tensors, dropped


def with_head(encoder: Encoder, found: Architecture, run: dict[str, torch.Tensor]) -> tuple[Encoder, Architecture]:
    """Combine the run's encoder and head into the base model from which the adapter is saved."""
    head = {"head.weight": run[HEAD_WEIGHT], "head.bias": run[HEAD_BIAS]}
    return replace(encoder, tensors=encoder.tensors | head), replace(found, labels=len(run[HEAD_BIAS]))


def attach_adapter(
    base: ViTForImageClassification, config: GatedPromptConfig, tensors: dict[str, torch.Tensor], name: str | None
) -> PeftModel:
    """Attach the adapter to a base of its shape, ready to save. `name` is recorded as the base's."""
    base.name_or_path = name  # where PEFT looks for it
    model = get_peft_model(base, config)
    set_peft_model_state_dict(model, tensors)
    return model


def describe(config: GatedPromptConfig, labels: int) -> str:
    """Return one line for the report."""
    kind = "deep prompts" if config.deep else "prompts"
    blocks = "every block but the last" if config.gated_blocks is None else f"blocks {config.gated_blocks}"
    gates = "no gates" if config.deep or not config.gates else f"gates on {blocks}"
    temperatures = "temperatures" if config.temperature else "no temperatures"
    return (
        f"adapter of {config.num_virtual_tokens} {kind}, {gates}, {temperatures}, pooling {config.pooling!r}, "
        f"head for {labels} classes"
    )
