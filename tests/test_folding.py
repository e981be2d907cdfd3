"""Temperatures folded into the query weights: the same outputs, the base's own weights afterwards."""

import re

import pytest
import torch
from families import HERE
from models import images, vit
from peft import PeftModel, get_peft_model
from test_families import P, prompted, read

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, UnsupportedOperationError


def make(**settings) -> PeftModel:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=P, **settings)).eval()
    model.base_model.model.gated_prompt.gated_prompt_temperatures["default"].data.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.id)
@torch.no_grad()
def test_every_family_computes_the_same(case) -> None:
    model = prompted(case)
    wanted = read(case, case.run(model))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if any(not isinstance(query.module, torch.nn.Linear) for query in model.base_model.model.gated_prompt.queries):
        assert case.family == "timm"  # with a norm on its queries
        with pytest.raises(UnsupportedOperationError, match="not of a plain Linear"):
            gated_prompt.fold_temperatures(model)
        return
    gated_prompt.fold_temperatures(model)
    assert any(not torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert (read(case, case.run(model)) - wanted).abs().max() <= 2e-5 * max(1.0, wanted.abs().max())
    gated_prompt.unfold_temperatures(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(read(case, case.run(model)), wanted)


@torch.no_grad()
def test_blocks_below_the_prompts_and_the_adapter_stay_as_they_are() -> None:
    model = make(insert_at=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gated_prompt.fold_temperatures(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == 4  # weight and bias of two blocks
    assert not any("gated_prompt" in name for name in changed)
    assert {re.search(r"\.(\d+)\.", name)[1] for name in changed} == {"2", "3"}


@torch.no_grad()
def test_unload_gives_the_base_back() -> None:
    base = vit()
    wanted = base(images()).logits
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=P, temperature_init=1.7)).eval()
    gated_prompt.fold_temperatures(model)
    assert torch.equal(model.unload()(images()).logits, wanted)


@torch.no_grad()
def test_what_would_meet_changed_weights_is_refused() -> None:
    model = make()
    model.add_adapter("other", GatedPromptConfig(num_virtual_tokens=2))
    model.eval()
    gated_prompt.fold_temperatures(model)
    wanted = model(images()).logits
    for call in (
        model.train,
        lambda: model.set_adapter("other"),
        lambda: model(images(), adapter_names=["default", "__base__"]),
        lambda: model.disable_adapter().__enter__(),
        lambda: gated_prompt.fold_temperatures(model),
    ):
        with pytest.raises(UnsupportedOperationError, match="fold"):
            call()
        model.eval()
        assert torch.equal(model(images()).logits, wanted)
    gated_prompt.unfold_temperatures(model)
    model.set_adapter("other")
    with pytest.raises(UnsupportedOperationError, match="not active"):
        gated_prompt.fold_temperatures(model, "default")
    with pytest.raises(UnsupportedOperationError, match="in training mode"):
        gated_prompt.fold_temperatures(model.train())
    with pytest.raises(GatedPromptError, match="no gated prompts"):
        gated_prompt.fold_temperatures(vit())
    with pytest.raises(GatedPromptError, match="no gated prompts"):
        gated_prompt.unfold_temperatures(vit())
