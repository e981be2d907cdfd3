# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`prompt_attention` against the model's own attention weights, for every family."""

from typing import Any

import pytest
import torch
from peft import get_peft_model

from gated_prompt import GatedPromptConfig, GatedPromptError, UnsupportedOperationError
from gated_prompt.plots import prompt_attention
from helpers.families import HERE, PATCH, SIZE, VERSION, Case
from helpers.models import images, vit
from helpers.prompted import P, prompted, tensors

GRID = SIZE // PATCH
# Families whose class of attention is chosen when the model is built.
FIXED = {"Data2Vec-Vision": VERSION >= (5, 0), "BEiT": (5, 0) <= VERSION < (5, 9)}
FIXED = [family for family, fixed in FIXED.items() if fixed]
SILENT = [c for c in HERE if not c.reports]
SHOWN = [c for c in HERE if c.config and c.reports and c.family not in ("ViT-MAE", "SigLIP 2")]


def call(case: Case) -> tuple[torch.Tensor, dict[str, Any]]:
    inputs = case.inputs()
    return inputs.pop("pixel_values"), inputs


def own_attentions(case: Case) -> list[torch.Tensor]:
    """The attention weights of the model loaded with eager attention."""
    with torch.no_grad():
        found = tensors(case.run(prompted(case, attention="eager", insert_at=1), output_attentions=True))
    names = [n for n in found if "attentions." in n and "text" not in n]
    return [found[name] for name in sorted(names, key=lambda n: int(n.rpartition(".")[2]))]


@pytest.mark.parametrize("case", SHOWN, ids=[case.id for case in SHOWN])
def test_rows_of_the_models_own_attention(case: Case) -> None:
    """Load the model with sdpa if it can be switched; afterwards it must have sdpa again."""
    loaded = "eager" if case.family in FIXED else "sdpa"
    model = prompted(case, attention=loaded, insert_at=1)
    pixels, inputs = call(case)
    found = prompt_attention(model, pixels, prompts=[3, 0], inputs=inputs)

    assert (found.blocks, found.chosen) == ([1, 2, 3], [3, 0])
    assert found.prompts.shape == (2, 3, 2, GRID, GRID)
    assert (found.cls is None) == (case.prefix == 0)
    own = own_attentions(case)
    for row, block in enumerate(found.blocks):
        mean, first = own[block].mean(dim=1), case.prefix
        for column, index in enumerate(found.chosen):
            wanted = mean[:, first + index, first + P :].reshape(2, GRID, GRID)
            torch.testing.assert_close(found.prompts[:, row, column], wanted, rtol=1e-5, atol=1e-6)
        if found.cls is not None:
            wanted = mean[:, 0, first + P :].reshape(2, GRID, GRID)
            torch.testing.assert_close(found.cls[:, row], wanted, rtol=1e-5, atol=1e-6)

    implementations = {m.config._attn_implementation for m in model.modules() if hasattr(m, "set_attn_implementation")}
    assert implementations == {loaded}


def test_padded_patches_of_siglip_2_are_left_out() -> None:
    case = next(c for c in HERE if c.name == "Siglip2VisionModel")
    model = prompted(case)
    pixels, inputs = call(case)
    words = r"grids of patches differ: \[\(3, 3\), \(4, 4\)\]. Give images of one size"
    with pytest.raises(GatedPromptError, match=words):
        prompt_attention(model, pixels, inputs=inputs)
    small = {name: value[1:] for name, value in inputs.items()}
    found = prompt_attention(model, pixels[1:], inputs=small)
    assert found.prompts.shape == (1, 4, P, 3, 3)
    assert (found.prompts > 0).all()
    with pytest.raises(GatedPromptError, match=r"shape \(1, 16, 192\), expected .* give spatial_shapes"):
        prompt_attention(model, pixels[1:])


def test_images_of_another_size_and_shape() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2)).eval()
    wide = torch.randn(1, 3, 24, 48, generator=torch.Generator().manual_seed(0))
    found = prompt_attention(model, wide, inputs={"interpolate_pos_encoding": True})
    assert found.prompts.shape == (1, 4, 2, 3, 6)


def test_the_named_adapter_is_used_and_nothing_is_switched_for_good() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2)).eval()
    model.add_adapter("other", GatedPromptConfig(num_virtual_tokens=4))
    active = prompt_attention(model, images())
    other = prompt_attention(model, images(), adapter_name="other")
    with model.disable_adapter():
        again = prompt_attention(model, images())
    assert (active.prompts.shape[2], other.prompts.shape[2]) == (2, 4)
    assert torch.equal(again.prompts, active.prompts)
    assert model.active_adapter == "default"
    assert {n.split(".")[-1] for n, p in model.named_parameters() if p.requires_grad and "gated" in n} == {"default"}
    model.set_adapter("other")
    assert torch.equal(prompt_attention(model, images()).prompts, other.prompts)


def test_the_implementation_comes_back_after_an_error() -> None:
    model = get_peft_model(vit(), GatedPromptConfig()).eval()
    with pytest.raises(ValueError, match="size"):
        prompt_attention(model, images(size=16))  # not the size of the position embeddings
    assert model.base_model.model.config._attn_implementation == "sdpa"


def test_patches_that_are_not_square() -> None:
    model = get_peft_model(vit(patch_size=(8, 4)), GatedPromptConfig()).eval()
    with pytest.raises(GatedPromptError, match="has 32 patches in its blocks, expected a grid of 6 x 6 square"):
        prompt_attention(model, images())


@pytest.mark.parametrize("prompts", [[], [2], [-1]])
def test_prompts_that_are_not_there(prompts: list[int]) -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2)).eval()
    with pytest.raises(GatedPromptError, match="Expected one or more indices from 0 to 1"):
        prompt_attention(model, images(), prompts=prompts)


def test_refusals() -> None:
    model = get_peft_model(vit(), GatedPromptConfig())
    with pytest.raises(GatedPromptError, match=r"training mode.*model\.eval\(\)"):
        prompt_attention(model.train(), images())
    with pytest.raises(GatedPromptError, match=r"no adapter 'other' here. Choose from: default"):
        prompt_attention(model.eval(), images(), adapter_name="other")
    with pytest.raises(GatedPromptError, match="carries no gated prompts"):
        prompt_attention(vit(), images())
    timm = prompted(next(c for c in HERE if not c.config))
    with pytest.raises(UnsupportedOperationError, match="TimmLikeViT is not a transformers model"):
        prompt_attention(timm, images())
    for case in (c for c in HERE if c.family == "ViT-MAE"):
        with pytest.raises(GatedPromptError, match=r"drops and shuffles patches.*ViTForImageClassification"):
            prompt_attention(prompted(case), images())


@pytest.mark.skipif(not FIXED, reason="transformers 4.57 computes the weights of Data2Vec-Vision in any case")
def test_a_model_that_cannot_be_switched_has_to_be_loaded_in_eager_mode() -> None:
    for case in (c for c in HERE if c.family in FIXED):
        with pytest.raises(UnsupportedOperationError, match="Load it with attn_implementation='eager'"):
            prompt_attention(prompted(case), images())


@pytest.mark.skipif(not SILENT, reason="this version of transformers reports the attentions of both towers")
def test_towers_that_report_nothing() -> None:
    for case in SILENT:
        pixels, inputs = call(case)
        if "spatial_shapes" in inputs:  # one of the two images
            pixels, inputs = pixels[:1], {name: value[:1] for name, value in inputs.items()}
        with pytest.raises(UnsupportedOperationError, match="returns no attention weights"):
            prompt_attention(prompted(case), pixels, inputs=inputs)
