# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Models that prompts cannot be put into are refused, with the reason, before anything is changed."""

import copy
import pickle

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

from gated_prompt import ArchitectureError, GatedPromptConfig, UnsupportedOperationError
from helpers.families import CASES, DEPTH, TINY, images
from helpers.timm_like import Attention, Block, TimmLikeViT

TEXT = {**TINY, "vocab_size": 20}
STAGES = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2}
SPEECH = {"conv_dim": [8, 8], "conv_kernel": [4, 4], "conv_stride": [2, 2], "num_conv_pos_embeddings": 4}
HIERA = {"image_size": [32, 32], "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "query_stride": [2, 2]}
HIERA |= {"num_query_pool": 1, "masked_unit_size": [4, 4]}
REFUSED = [
    ("SwinForImageClassification", "SwinConfig", STAGES, "hierarchical transformer"),
    ("Swinv2ForImageClassification", "Swinv2Config", STAGES, "hierarchical transformer"),
    ("SegformerModel", "SegformerConfig", {"depths": [2, 2, 2, 2]}, "hierarchical transformer"),
    ("HieraModel", "HieraConfig", HIERA, "hierarchical transformer"),
    ("BertModel", "BertConfig", TEXT, "no patch projection"),
    # Both have Linears before their blocks, which turn no patches into tokens.
    ("ElectraModel", "ElectraConfig", TEXT | {"embedding_size": 16}, "no patch projection"),
    ("Wav2Vec2Model", "Wav2Vec2Config", TINY | SPEECH, "no patch projection"),
    (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"depths": [2, 2], "hidden_sizes": [8, 8], "embedding_size": 8},
        "no list of two or more",
    ),
]


def assert_refused(model: nn.Module, reason: str) -> None:
    keys, trainable = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ArchitectureError, match=reason):
        get_peft_model(model, GatedPromptConfig())
    assert (list(model.state_dict()), [p.requires_grad for p in model.parameters()]) == (keys, trainable)


@pytest.mark.parametrize(("name", "config", "settings", "reason"), REFUSED, ids=[row[0] for row in REFUSED])
def test_not_a_plain_vision_transformer(name: str, config: str, settings: dict, reason: str) -> None:
    assert_refused(getattr(transformers, name)(getattr(transformers, config)(**settings)), reason)


def test_blocks_that_work_on_maps() -> None:
    config = transformers.VitDetConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    model = get_peft_model(transformers.VitDetModel(config), GatedPromptConfig())
    with pytest.raises(ArchitectureError, match=r"hidden states of shape \(2, 32, 4, 4\), not on a row of tokens"):
        model(**images())


def timm_like(**settings: object) -> TimmLikeViT:
    return TimmLikeViT(depth=DEPTH, width=32, image_size=32, patch_size=8, labels=5, **settings).eval()


def test_bias_table_inside_the_attention() -> None:
    model = timm_like()
    for block in model.blocks:
        block.attn.relative_position_bias_table = nn.Parameter(torch.zeros(52, 4))
    assert_refused(model, "Attention adds a relative position bias of a fixed number of tokens")


def test_query_bias_outside_of_qkv() -> None:
    model = timm_like()
    for block in model.blocks:
        block.attn.q_bias = nn.Parameter(torch.zeros(32))
    assert_refused(model, "Attention adds its query bias outside of its module `qkv`")


class Wrapper(nn.Module):
    """A model around a timm model, as transformers' TimmWrapper is."""

    def __init__(self) -> None:
        super().__init__()
        self.timm_model = timm_like()

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return self.timm_model.forward_intermediates(pixels)


@torch.no_grad()
def test_maps_of_timm_are_not_cut_from_prompted_tokens() -> None:
    """With 16 prompts on 16 patches the reshape to maps would go through, and be wrong."""
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


@torch.no_grad()
def test_text_of_the_length_of_the_prompted_image_is_left_alone() -> None:
    """CLIP's outputs as plain tuples hold the text's tokens beside the image's: 17 + 5 of them are no prompts."""
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
    """The refusals above are about the parameters that were added to it, so without them it must pass."""
    assert isinstance(timm_like().blocks[0], Block)
    assert isinstance(timm_like().blocks[0].attn, Attention)
    get_peft_model(timm_like(), GatedPromptConfig())
