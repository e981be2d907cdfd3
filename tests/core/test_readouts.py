"""Gates, temperatures and selection ratios against numbers computed by hand."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from gated_prompt import GatedPromptConfig, GatedPromptError, gates, selection_ratios, temperatures
from helpers.models import bank_of, vit


def with_gates(values: list[float], **settings) -> PeftModel:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2, **settings))
    bank = bank_of(model)
    bank.gated_prompt_gate_logits["default"].data.copy_(torch.logit(torch.tensor(values)))
    return model


def test_gates_start_where_gate_init_says() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2))
    torch.testing.assert_close(gates(model), torch.full((3,), 0.0066929))  # the paper's "5" is the logit -5


def test_selection_ratios_are_the_weights_of_the_recurrence() -> None:
    model = with_gates([0.5, 0.2, 0.4])
    torch.testing.assert_close(gates(model), torch.tensor([0.5, 0.2, 0.4]))
    weights = torch.tensor([0.5 * 0.8 * 0.6, 0.2 * 0.6, 0.4])  # g_l * prod_{j>l} (1 - g_j)
    torch.testing.assert_close(selection_ratios(model), weights / weights.sum())


def test_selection_ratios_of_closed_gates_are_finite() -> None:
    model = with_gates([0.5, 0.5, 0.5])
    bank_of(model).gated_prompt_gate_logits["default"].data.fill_(-200.0)
    torch.testing.assert_close(selection_ratios(model), torch.full((3,), 1 / 3))


def test_order_is_that_of_the_gated_blocks() -> None:
    model = with_gates([0.1, 0.9], gated_blocks=[1, 3])
    torch.testing.assert_close(gates(model), torch.tensor([0.1, 0.9]))


def test_without_gates_all_is_empty() -> None:
    for settings in ({"gates": False}, {"deep": True}, {"insert_at": 3}):
        model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2, **settings))
        assert gates(model).shape == (0,)
        assert selection_ratios(model).shape == (0,)


def test_temperatures_learned_and_fixed() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2, insert_at=1, temperature_init=1.5))
    assert temperatures(model).tolist() == [1.5] * 3
    bank = bank_of(model)
    bank.gated_prompt_temperatures["default"].data.copy_(torch.tensor([-1.0, 0.5, 30.0]))
    torch.testing.assert_close(temperatures(model), torch.tensor([0.01, 0.5, 10.0]))  # as a forward uses them
    assert bank.gated_prompt_temperatures["default"][0].item() == -1.0  # reading changes nothing
    fixed = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2, temperature=False, temperature_init=2.0))
    assert temperatures(fixed).tolist() == [2.0] * 4


def test_reading_gives_copies_without_gradient() -> None:
    model = with_gates([0.5, 0.5, 0.5])
    for read in (gates, temperatures, selection_ratios):
        value = read(model)
        assert not value.requires_grad
        value.zero_()
    assert gates(model).tolist() == [0.5] * 3


def test_who_cannot_be_read_is_told() -> None:
    with pytest.raises(GatedPromptError, match="carries no gated prompts"):
        gates(vit())
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2), adapter_name="birds")
    with pytest.raises(GatedPromptError, match=r"no adapter 'cars' here. Choose from: birds"):
        temperatures(model, "cars")


def test_blocks_without_a_gate_replace_the_prompts() -> None:
    """Gates of 1/2 at blocks 0 and 3 of 5: after the ungated blocks 1 and 2 nothing of block 0 is left."""
    for gated, wanted in (
        ([0, 3], [0.0, 1.0]),
        ([2, 3], [1 / 3, 2 / 3]),
        ([0, 1], [0.0, 0.0]),
        ([3, 4], [1 / 3, 2 / 3]),
    ):
        config = GatedPromptConfig(num_virtual_tokens=2, gate_init=0.0, gated_blocks=gated)
        model = get_peft_model(vit(num_hidden_layers=5), config)
        torch.testing.assert_close(selection_ratios(model), torch.tensor(wanted))
