# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Models that cannot hold prompts are refused, with the reason, before anything changes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

from gated_prompt import ArchitectureError, GatedPromptConfig, UnsupportedOperationError
from helpers.families import CASES, DEPTH, images
from helpers.refused import REFUSED, TIMM, Refused
from helpers.timm_like import Attention, Block, TimmLikeViT

HERE = [case for case in REFUSED if case.here]

cases = pytest.mark.parametrize("case", HERE, ids=[f"{case.name}-{case.what}" for case in HERE])


def classes(case: Refused) -> set[str]:
    return {type(module).__name__ for module in case.build().modules()}


@cases
def test_the_reason_is_given_before_anything_is_wrong(case: Refused) -> None:
    """docs/families.md shows the message, and `test_family_table.py` compares."""
    message = case.message()
    assert case.name in message or case.name == TIMM or any(n in message for n in classes(case)), message


def timm_like(**settings: object) -> TimmLikeViT:
    return TimmLikeViT(depth=DEPTH, width=32, image_size=32, patch_size=8, labels=5, **settings).eval()


class Wrapper(nn.Module):
    """A model around a timm model, as transformers' TimmWrapper is."""

    def __init__(self) -> None:
        super().__init__()
        self.timm_model = timm_like()

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return self.timm_model.forward_intermediates(pixels)


@torch.no_grad()
def test_maps_of_timm_are_not_cut_from_prompted_tokens() -> None:
    """With 16 prompts and 16 patches, the reshape to maps would succeed and be wrong."""
    pixels, base = images()["pixel_values"], Wrapper()
    wanted = base(pixels)
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=16))
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(UnsupportedOperationError, match=r"forward_intermediates of TimmLikeViT .*output_hidden"):
            one(pixels)
        with pytest.raises(UnsupportedOperationError):
            one.base_model.model.timm_model.forward_intermediates(pixels)
        with one.disable_adapter():
            assert all(torch.equal(a, b) for a, b in zip(one(pixels), wanted, strict=True))
    restored = model.unload()
    assert all(torch.equal(a, b) for a, b in zip(restored(pixels), wanted, strict=True))
    assert "forward_intermediates" not in vars(restored.timm_model)


class NoCalls(Attention):
    """Computes queries, keys and values from the weights in `qkv`, without calling it."""

    def forward(self, x: torch.Tensor, rope: torch.Tensor | None = None) -> torch.Tensor:
        parts = F.linear(x, self.qkv.weight, self.qkv.bias).unflatten(-1, (3, self.heads, -1))
        mixed = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        return self.proj(mixed.transpose(1, 2).flatten(2))


@torch.no_grad()
def test_a_temperature_that_would_reach_nothing() -> None:
    """A hook on a projection that is never called: the temperature would be learned, saved and ignored."""
    pixels, base = images()["pixel_values"], timm_like()
    for block in base.blocks:
        block.attn.__class__ = NoCalls
    model = get_peft_model(copy.deepcopy(base), GatedPromptConfig())
    with pytest.raises(ArchitectureError, match=r"Block 0 did not call its query projection, .*temperature=False"):
        model(pixels)
    assert get_peft_model(base, GatedPromptConfig(temperature=False))(pixels).shape == (2, 5)


@torch.no_grad()
def test_text_of_the_length_of_the_prompted_image_is_left_alone() -> None:
    """CLIP's outputs as plain tuples also contain text tokens: 17 + 5 of them are not prompts."""
    case = next(case for case in CASES if case.name == "CLIPModel")
    config = case.build().config
    config.text_config.max_position_embeddings = 22
    model = get_peft_model(transformers.CLIPModel(config).eval(), GatedPromptConfig(num_virtual_tokens=5))
    inputs = images() | {"input_ids": torch.randint(3, 19, (2, 22), generator=torch.Generator().manual_seed(1))}
    text = model(**inputs, return_dict=False)[-2]
    assert isinstance(model, PeftModel)
    assert text[0].shape[1] == 22
    assert model(**inputs, return_dict=False, output_hidden_states=True)[-2][0].shape[1] == 22


def test_the_stand_in_is_what_it_says() -> None:
    """The refusals above are caused by the added parameters, so without them the model must be accepted."""
    assert isinstance(timm_like().blocks[0], Block)
    assert isinstance(timm_like().blocks[0].attn, Attention)
    get_peft_model(timm_like(), GatedPromptConfig())
