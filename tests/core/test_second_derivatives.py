# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Gradients of each image by vmap, and gradients of gradients."""

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch.func import functional_call, grad, vmap

from gated_prompt import GatedPromptConfig, GatedPromptError, check
from helpers.models import vit

LABELS = torch.tensor([0, 1, 2])
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SETTINGS = [{}, {"deep": True}, {"deep": True, "zero_start": True}]


def adapted(**settings: bool) -> torch.nn.Module:
    base = vit()
    base.set_attn_implementation("eager")
    config = GatedPromptConfig(num_virtual_tokens=3, prompt_dropout=0.0, gate_init=0.0, **settings)
    model = get_peft_model(base, config).eval()
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "head_gates" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_of_each_image(settings: dict[str, bool]) -> None:
    model = adapted(**settings)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)).logits, label[None])

    together = vmap(grad(loss), (None, 0, 0))(trained, IMAGES, LABELS)
    for row, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        for name, wanted in grad(loss)(trained, image, label).items():
            assert torch.allclose(together[name][row], wanted, atol=1e-6), name


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_of_gradients(settings: dict[str, bool]) -> None:
    """The derivative of |gradient|^2 along a direction, against differences."""
    model = adapted(**settings).double()
    trained = [p for p in model.parameters() if p.requires_grad]
    directions = [torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).double() for p in trained]

    def size() -> torch.Tensor:
        loss = F.cross_entropy(model(IMAGES.double()).logits, LABELS)
        gradients = torch.autograd.grad(loss, trained, create_graph=True)
        return sum(g.square().sum() for g in gradients)

    second = torch.autograd.grad(size(), trained)
    found = sum((g * d).sum() for g, d in zip(second, directions, strict=True))
    values = []
    for step in (1e-4, -2e-4):
        for parameter, direction in zip(trained, directions, strict=True):
            parameter.data += step * direction
        values.append(size().detach())
    assert torch.allclose(found, (values[0] - values[1]) / 2e-4, rtol=1e-2), (found, values)


def test_check_without_inputs_says_what_is_missing() -> None:
    with pytest.raises(GatedPromptError, match="check needs inputs of the model"):
        check(adapted())
