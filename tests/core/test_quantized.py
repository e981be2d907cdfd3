# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Bases in 8 and 4 bits, on CPU: train prompts and head on them, save, load and unload."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig, ViTForImageClassification

import gated_prompt
from gated_prompt import ConfigError, GatedPromptConfig
from helpers.models import images, vit

transformers.logging.set_verbosity_error()


def eight_bits(*skipped: str) -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skipped))


def four_bits(*skipped: str) -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=list(skipped))


def torchao_int8(*skipped: str) -> Any:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    return TorchAoConfig(torchao.Int8WeightOnlyConfig(), modules_to_not_convert=list(skipped))


def torchao_int4(*skipped: str) -> Any:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    config = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4)
    return TorchAoConfig(config, modules_to_not_convert=list(skipped))


KINDS = pytest.mark.parametrize("kind", [eight_bits, four_bits, torchao_int8, torchao_int4])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vit(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    return tmp_path


def load(folder: Path, config: Any) -> nn.Module:
    return ViTForImageClassification.from_pretrained(folder / "base", quantization_config=config).eval()


@KINDS
def test_trained_saved_loaded_and_taken_off(kind: Any, folder: Path) -> None:
    base, pixels = load(folder, kind("classifier")).requires_grad_(False), images(4)
    assert type(base.vit.layers[0].attention.q_proj.weight) is not nn.Parameter, "nothing was quantized"
    pixels = pixels.to(base.vit.embeddings.patch_embeddings.projection.weight.dtype)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        wanted = load(folder, kind("classifier"))(pixel_values=pixels).logits
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3, gate_init=0.0, prompt_dropout=0.0))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=1e-2), []
    for _ in range(10):
        loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        assert all(p.grad is not None for p in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        found = model.eval()(pixel_values=pixels).logits
        with model.disable_adapter():
            disabled = model(pixel_values=pixels).logits
        gated_prompt.save(model, folder / "adapter")
        loaded = gated_prompt.load(load(folder, kind("classifier")), folder / "adapter").eval()
        again, restored = loaded(pixel_values=pixels).logits, model.unload()(pixel_values=pixels).logits
    # bitsandbytes packs 4-bit weights anew when they are evaluated after training, which is not exact on every CPU.
    tolerance = 0.1 if kind is four_bits else 0.0
    assert (again - found).abs().max() <= tolerance
    assert (restored - wanted).abs().max() <= tolerance
    assert (restored - disabled).abs().max() <= tolerance


@KINDS
def test_a_quantized_head_is_refused_with_the_option_that_keeps_it(kind: Any, folder: Path) -> None:
    base = load(folder, kind("no such module"))
    if type(base.classifier.weight) is nn.Parameter:
        pytest.skip("this transformers keeps classifiers as they are")
    with pytest.raises(
        ConfigError, match=r"classifier is to be trained but is quantized. Load .*skip_modules=\['classif"
    ):
        get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3))
