# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Heads whose weight is computed from other parameters, and parameters that are fixed inside a trained module."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from gated_prompt import ArchitectureError, GatedPromptConfig, GatedPromptError, initialize_head
from helpers.models import vit

LABELS = torch.arange(30) % 3
NOISE = torch.randn(30, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IMAGES = 0.3 * NOISE + (LABELS.float() - 1)[:, None, None, None]


def adapted(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    base = vit(num_labels=3)
    base.classifier = change(base.classifier)
    return get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3, prompt_dropout=0.0)).eval()


@torch.no_grad()
def test_weight_norm_gets_what_a_plain_head_gets() -> None:
    plain, normed = adapted(lambda head: head), adapted(parametrizations.weight_norm)
    normed.load_state_dict(plain.state_dict(), strict=False)  # the same prompts
    for model in (plain, normed):
        initialize_head(model, [(IMAGES, LABELS)])
    wanted = plain(IMAGES).logits
    assert (wanted.argmax(1) == LABELS).float().mean() > 0.9
    assert torch.allclose(normed(IMAGES).logits, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_a_parametrization_that_cannot_express_it_is_refused(change: Callable[[nn.Module], nn.Module]) -> None:
    model = adapted(change)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GatedPromptError, match=r"the weight of .*classifier is computed from other parameters"):
        initialize_head(model, [(IMAGES, LABELS)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("change", [weight_norm, lambda head: prune.l1_unstructured(head, "weight", 0.5)])
def test_a_head_that_cannot_be_copied_is_refused(change: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ArchitectureError, match="PyTorch cannot copy classifier"):
        adapted(change)


def mae() -> transformers.ViTMAEForPreTraining:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {f"decoder_{name}": value for name, value in small.items()}
    return transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(**small, **decoder, image_size=32, patch_size=8)
    )


def trained_positions(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and "pos_embed" in name]


def test_a_fixed_table_in_a_trained_decoder_stays_fixed() -> None:
    config = GatedPromptConfig(num_virtual_tokens=3)
    model = get_peft_model(mae(), config)
    assert model.peft_config["default"].modules_to_save == ["decoder"]
    model.add_adapter("b", config)
    for name in ("b", "default"):
        model.set_adapter(name)
        assert trained_positions(model) == []
        assert any(p.requires_grad for n, p in model.named_parameters() if f"modules_to_save.{name}." in n)
    with model.disable_adapter():
        pass
    assert trained_positions(model) == trained_positions(pickle.loads(pickle.dumps(copy.deepcopy(model)))) == []


def test_where_all_is_frozen_all_is_trained() -> None:
    model = get_peft_model(mae().requires_grad_(False), GatedPromptConfig(num_virtual_tokens=3))
    assert all(p.requires_grad for n, p in model.named_parameters() if ".modules_to_save.default." in n)
