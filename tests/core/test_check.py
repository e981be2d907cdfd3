"""`gated_prompt.check` passes correct models of every family, and describes what is wrong with others."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

import gated_prompt
from gated_prompt import CheckError, GatedPromptConfig, GatedPromptError, find_vision_transformer
from gated_prompt.architecture import AttentionParts
from helpers.families import HERE, Case
from helpers.models import bank_of, images, vit
from helpers.prompted import prompted


def adapted(**settings: object) -> PeftModel:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, gate_init=0.0, **settings)).eval()
    for tokens in bank_of(model).gated_prompt_tokens.values():
        nn.init.normal_(tokens, generator=torch.Generator().manual_seed(1))
    return model


def blocks(model: PeftModel) -> list[nn.Module]:
    return find_vision_transformer(model.base_model.model).blocks


def faults(model: PeftModel) -> str:
    with pytest.raises(CheckError) as caught:
        gated_prompt.check(model, pixel_values=images())
    assert len(caught.value.faults) > 0
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize(
    "settings", [{}, {"deep": True}, {"insert_at": 1, "read_from": 2}], ids=["gated", "deep", "read"]
)
@pytest.mark.parametrize("case", HERE, ids=lambda case: case.id)
def test_right_in_every_family(case: Case, settings: dict) -> None:
    if "read_from" in settings and case.name.endswith(("Backbone", "ForSemanticSegmentation")):
        pytest.skip("reads several blocks, so read_from is refused (test_read_from.py)")
    inputs = case.inputs()
    model = prompted(case, **settings)
    case.run(model)  # transformers installs hooks of its own in a first forward
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    gated_prompt.check(model, *(() if case.config else inputs.values()), **(inputs if case.config else {}))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("pooling", [None, "prompts", "patches", "prompts_and_patches"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"insert_at": 2}, {"deep": True}, {"gates": False}, {"hard_gates": True}, {"insert_at": 1, "read_from": 2}],
)
def test_right_with_every_setting(settings: dict, pooling: str | None) -> None:
    gated_prompt.check(adapted(pooling=pooling, **settings), pixel_values=images())


class PositionsByPlace(nn.Module):
    """A norm before the attention that adds a position by sequence index, as V-JEPA 2's rotation does."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], dtype=tokens.dtype)
        return self.norm(tokens) + places[:, None].sin()


def test_positions_by_place() -> None:
    model = adapted()
    for block in blocks(model):
        block.layernorm_before = PositionsByPlace(block.layernorm_before)
    found = faults(model)
    assert "prompts change the queries of other tokens in block 0" in found
    assert "prompts change the keys of other tokens in block 0" in found
    assert "the order of the prompts changes the output" in found


def test_something_between_the_blocks() -> None:
    model = adapted()
    blocks(model)[1].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]), prepend=True)
    assert "the model changes the tokens between blocks 0 and 1" in faults(model)


def test_a_gate_that_is_not_applied() -> None:
    model = adapted()
    blocks(model)[1].forward._mixed = lambda forward, role, tokens, entered: tokens
    assert "['logits'] differs from the blocks run by hand (largest difference" in faults(model)


def test_keys_and_values_that_are_not_those_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, right = adapted(deep=True), AttentionParts.keys_and_values
    monkeypatch.setattr(AttentionParts, "keys_and_values", lambda *args: [2 * part for part in right(*args)])
    found = faults(model)
    assert "depends on whether passive blocks have the prompts in their sequence" in found


def test_prompts_without_effect_and_without_gradient() -> None:
    model = adapted()
    model.base_model.model.classifier.modules_to_save["default"].weight.data.zero_()
    found = faults(model)
    assert "the prompts have no effect" in found
    assert "gated_prompt_tokens gets a zero or non-finite gradient" in found


def test_a_temperature_that_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gated_prompt.tuner.attention.scale_queries", lambda forward, index, queries: queries)
    assert "differs from the blocks run by hand" in faults(adapted(temperature_init=3.0))


def test_refusals() -> None:
    with pytest.raises(GatedPromptError, match=r"Call model\.eval\(\)"):
        gated_prompt.check(adapted().train(), pixel_values=images())
    with pytest.raises(GatedPromptError, match="carries no gated prompts"):
        gated_prompt.check(vit(), pixel_values=images())


def test_an_adapter_for_inference_has_no_gradients_to_check(tmp_path) -> None:
    adapted().save_pretrained(tmp_path)
    gated_prompt.check(PeftModel.from_pretrained(vit(), tmp_path).eval(), pixel_values=images())
