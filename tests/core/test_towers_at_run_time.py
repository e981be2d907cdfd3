# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What only a forward shows: gradients that are off in the tower, tokens by another name, prefixes without patches."""

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from gated_prompt import ArchitectureError, GatedPromptConfig, UnsupportedOperationError, check
from helpers.models import bank_of, images, vit


class Frozen(nn.Module):
    """Runs its tower with gradients off, as CLIPSeg does; with `teacher`, once more with gradients on."""

    def __init__(self, teacher: bool = False) -> None:
        super().__init__()
        self.tower, self.teacher = vit().vit, teacher
        self.classifier = nn.Linear(32, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            tokens = self.tower(pixel_values).last_hidden_state
        if self.teacher:
            tokens = tokens + self.tower(pixel_values).last_hidden_state
        return self.classifier(tokens[:, 0])


def test_a_tower_without_gradients_is_refused_in_training() -> None:
    model = get_peft_model(Frozen(), GatedPromptConfig(num_virtual_tokens=3, modules_to_save=["classifier"]))
    with pytest.raises(UnsupportedOperationError, match="Frozen runs its vision tower with gradients off"):
        model.train()(images())
    with torch.no_grad():
        model(images())
    model.eval()(images())
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("classifier" in name)
    model(images()).sum().backward()


def test_a_teacher_without_gradients_is_allowed() -> None:
    model = get_peft_model(Frozen(teacher=True), GatedPromptConfig(num_virtual_tokens=3, modules_to_save=[]))
    model.train()(images()).sum().backward()
    assert bank_of(model).gated_prompt_tokens["default"].grad.abs().sum() > 0


@pytest.mark.parametrize("settings", [{}, {"deep": True}, {"pooling": "patches"}])
def test_a_prefix_that_leaves_no_patch_is_refused(settings: dict[str, object]) -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, num_prefix_tokens=17, **settings)).eval()
    with pytest.raises(ArchitectureError, match="gets 17 tokens, and num_prefix_tokens=17 leaves no patch"):
        model(images())


def test_llama_4_gives_its_blocks_tokens_by_another_name() -> None:
    if not hasattr(transformers, "Llama4VisionModel"):
        pytest.skip("this transformers has no Llama 4")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    config = transformers.Llama4VisionConfig(
        **small, image_size=32, patch_size=8, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32
    )
    base = transformers.Llama4VisionModel(config).eval()
    for parameter in base.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3, gate_init=0.0, prompt_dropout=0.0)).eval()
    check(model, pixel_values=images())
