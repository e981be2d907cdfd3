# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Starts from images where blocks take keywords, values have LoRA, or prompts were cast; heads on plain backbones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from gated_prompt import GatedPromptConfig, UnsupportedOperationError, initialize_prompts
from gated_prompt.heads import TokenClassifier
from helpers.models import bank_of, images, vit


class ByKeyword(nn.Module):
    """Gives its blocks the hidden states by name, as the forward allows."""

    def __init__(self) -> None:
        super().__init__()
        base = vit().vit
        self.embeddings, self.blocks = base.embeddings, base.layers if hasattr(base, "layers") else base.encoder.layer
        self.head = nn.Linear(32, 3)

    def forward(self, pixel_values: torch.Tensor, by_name: bool = True) -> torch.Tensor:
        x = self.embeddings(pixel_values)
        for block in self.blocks:
            found = block(hidden_states=x) if by_name else block(x)
            x = found[0] if isinstance(found, tuple) else found
        return self.head(x[:, 0])


def started(model: nn.Module, method: str = "sample", **options: float) -> torch.Tensor:
    adapted = get_peft_model(model, GatedPromptConfig(num_virtual_tokens=3))
    initialize_prompts(adapted, [images()], method=method, **options)
    return bank_of(adapted).gated_prompt_tokens["default"].detach()


@pytest.mark.parametrize("method", ["sample", "match"])
def test_blocks_called_by_keyword(method: str) -> None:
    torch.manual_seed(0)
    named = ByKeyword()
    placed = copy.deepcopy(named)
    placed.forward = lambda pixel_values: ByKeyword.forward(placed, pixel_values, by_name=False)
    assert torch.equal(started(named, method), started(placed, method))


def test_match_uses_the_values_with_lora() -> None:
    lora = LoraConfig(target_modules=r".*\.(value|v_proj)", r=4, init_lora_weights=False)
    torch.manual_seed(3)
    base = get_peft_model(vit(), lora)
    merged = copy.deepcopy(base).merge_and_unload()
    found, wanted = (started(model, "match", orthogonal=0.5) for model in (base.base_model.model, merged))
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, started(vit(), "match", orthogonal=0.5), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_fresh_prompts_stay_fresh_when_cast(dtype: torch.dtype) -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3)).to(dtype)
    initialize_prompts(model, [images()])
    initialize_prompts(model.float(), [images()])
    bank_of(model).gated_prompt_tokens["default"].data[0, 0, 0] += 0.1
    with pytest.raises(UnsupportedOperationError, match="differ from their initial values"):
        initialize_prompts(model, [images()])


class Plain(nn.Module):
    """A backbone of no library: no config, tokens as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = vit().vit

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.inner(pixel_values).last_hidden_state


def test_a_loss_without_a_config() -> None:
    labels = torch.tensor([0, 2])
    model = TokenClassifier(Plain(), 3)
    output = model(images(), labels=labels)
    assert torch.equal(output.loss, F.cross_entropy(output.logits, labels))
    adapted = get_peft_model(model, GatedPromptConfig(num_virtual_tokens=3))
    adapted(pixel_values=images(), labels=labels).loss.backward()
    assert bank_of(adapted).gated_prompt_tokens["default"].grad.abs().sum() > 0


def test_a_bfloat16_backbone_under_autocast() -> None:
    model = TokenClassifier(vit().vit.to(torch.bfloat16), 3)
    for one in (model, get_peft_model(model, GatedPromptConfig(num_virtual_tokens=3))):
        with torch.autocast("cpu", torch.bfloat16):
            output = one(pixel_values=images().bfloat16(), labels=torch.tensor([0, 2]))
        output.loss.backward()
        assert torch.isfinite(output.loss)
