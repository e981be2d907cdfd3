# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Tests with timm, if it is installed; other tests use `timm_like.py` instead."""

from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model

from gated_prompt import ArchitectureError, GatedPromptConfig, UnsupportedOperationError, find_vision_transformer
from helpers.families import images

try:
    import timm
except ImportError as error:
    pytest.skip(
        f"timm cannot be imported here ({error}). Install timm and the torchvision that fits this torch to run these",
        allow_module_level=True,
    )

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
MODELS = [  # with the number of prefix tokens
    ("vit_tiny_patch16_224", 1),
    ("vit_small_patch14_reg4_dinov2", 5),
    ("deit_tiny_distilled_patch16_224", 2),
    ("vit_base_patch16_siglip_224", 0),
    ("vit_base_patch16_dinov3", 5),
    ("vit_small_patch16_rope_mixed_224", 1),
    ("eva02_base_patch14_224", 1),
    ("eva02_tiny_patch14_224", 1),  # the bias of the queries is added outside of qkv
    ("eva_giant_patch14_224", 1),
    ("vit_base_patch16_dinov3_qkvb", 5),
    ("vit_base_patch16_rope_reg1_gap_256", 1),
    ("vit_pe_core_base_patch16_224", 1),  # Perception Encoder: rotary, attention pool
    ("vit_so400m_patch14_siglip_224", 0),  # attention pool
    ("flexivit_base", 1),
    ("deit3_base_patch16_224", 1),
    ("vit_base_patch16_reg4_gap_256", 4),  # registers, no CLS
    ("cait_xxs24_224", 0),  # CLS comes in behind the blocks
]


def build(name: str, **settings: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **{**TINY, **settings}).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize(("name", "prefix"), MODELS)
def test_prompts_reach_the_output(name: str, prefix: int) -> None:
    pixels, base = images()["pixel_values"], build(name).requires_grad_(False)
    with torch.no_grad():
        wanted = base(pixels)
    assert find_vision_transformer(base).num_prefix_tokens == prefix
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=7, gate_init=0.0, prompt_dropout=0.0)).eval()
    found = model(pixels)
    assert (found - wanted).abs().max() > 1e-4
    (found * torch.arange(1.0, 6.0)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if "gated_prompt_" in parameter_name:
            assert (parameter.grad != 0).all(), parameter_name
    tokens = base.gated_prompt.gated_prompt_tokens["default"]
    with torch.no_grad():
        tokens.data = tokens.data.flip(1)
        assert torch.allclose(model(pixels), found, atol=1e-5)
        with model.disable_adapter():
            assert torch.equal(model(pixels), wanted)


@pytest.mark.parametrize("name", ["vit_relpos_base_patch16_224", "vit_relpos_base_patch16_clsgap_224"])
def test_biases_that_no_hook_sees_are_refused(name: str) -> None:
    with pytest.raises(ArchitectureError, match=r"RelPosMlp derives positions from .* \(get_bias\)"):
        get_peft_model(build(name), GatedPromptConfig())


def test_naflexvit_has_a_patch_projection() -> None:
    base = timm.create_model("naflexvit_base_patch16_gap", num_classes=5).eval().requires_grad_(False)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = base(pixels)
        model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=7)).eval()
        assert find_vision_transformer(base).num_prefix_tokens == base.num_prefix_tokens == 4
        assert not torch.equal(model(pixels), wanted)
        assert torch.equal(model.unload()(pixels), wanted)


def test_biases_in_the_attention_itself_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="adds a relative position bias for a fixed number of tokens"):
        get_peft_model(build("beit_base_patch16_224"), GatedPromptConfig())


def test_pooling_follows_global_pool() -> None:
    get_peft_model(build("vit_tiny_patch16_224"), GatedPromptConfig(pooling="prompts"))
    with pytest.raises(ArchitectureError, match="global_pool='avg'"):
        get_peft_model(build("vit_tiny_patch16_224", global_pool="avg"), GatedPromptConfig(pooling="prompts"))


@torch.no_grad()
def test_transformers_wrapper() -> None:
    settings = {key: value for key, value in TINY.items() if key != "num_classes"}
    config = transformers.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=settings, num_labels=5)
    base = transformers.TimmWrapperForImageClassification(config).eval()
    wanted = base(**images(), output_hidden_states=True)
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=16)).eval()
    assert model.peft_config["default"].modules_to_save == ["timm_model.head"]
    assert model(**images()).logits.shape == (2, 5)
    assert not torch.equal(model(**images()).logits, wanted.logits)
    with pytest.raises(UnsupportedOperationError, match="output_hidden_states"):
        model(**images(), output_hidden_states=True)
    with model.disable_adapter():
        assert torch.equal(model(**images(), output_hidden_states=True).hidden_states[0], wanted.hidden_states[0])
