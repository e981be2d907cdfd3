"""Hard gates: sampled as 0 or 1 in training with probability sigmoid(logit), with a straight-through gradient."""

import pytest
import torch
from peft import PeftModel, get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig, gates
from helpers.models import bank_of, images, vit


def make(logits: list[float], hard: bool = True, **settings: object) -> PeftModel:
    torch.manual_seed(0)
    config = GatedPromptConfig(num_virtual_tokens=3, hard_gates=hard, prompt_dropout=0.0, **settings)
    model = get_peft_model(vit(), config)
    bank_of(model).gated_prompt_gate_logits["default"].data.copy_(torch.tensor(logits))
    return model


@torch.no_grad()
def logits(model: PeftModel) -> torch.Tensor:
    return model.eval()(images()).logits


def test_in_eval_mode_the_sign_of_the_logit_decides() -> None:
    hard, soft = make([0.3, -0.3, 2.0]), make([200.0, -200.0, 200.0], hard=False)
    assert torch.equal(logits(hard), logits(soft))
    assert not torch.allclose(logits(hard), logits(make([0.3, -0.3, 2.0], hard=False)), atol=1e-4)
    assert torch.equal(logits(make([0.0] * 3)), logits(make([-200.0] * 3, hard=False)))  # at 0: shut


def test_training_draws_open_gates_with_the_probability_that_gates_gives() -> None:
    model = make([-1.0, 0.0, 1.5]).train()
    bank = bank_of(model)
    draws = torch.tensor(
        [[bank.gate(bank.adapters_in_use[0], block).item() for block in range(3)] for _ in range(4000)]
    )
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draws.mean(0), gates(model), atol=0.03, rtol=0)
    torch.testing.assert_close(gates(model), torch.sigmoid(torch.tensor([-1.0, 0.0, 1.5])))


def test_the_gradient_is_that_of_the_soft_draw() -> None:
    model = make([-1.0, 0.0, 1.5]).train()
    bank = bank_of(model)
    raw = bank.gated_prompt_gate_logits["default"]
    for block, logit in enumerate([-1.0, 0.0, 1.5]):
        torch.manual_seed(5)
        u = torch.rand(())
        soft = torch.sigmoid(logit + torch.log(u / (1 - u)))
        torch.manual_seed(5)
        gate = bank.gate(bank.adapters_in_use[0], block)
        assert gate.item() == float(soft > 0.5)
        (gradient,) = torch.autograd.grad(gate, raw)
        wanted = torch.zeros(3)
        wanted[block] = soft * (1 - soft)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_draws_the_same_gates_again(reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model = make([0.0, 0.2, -0.2]).train()
        if checkpointed:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(3)
        model(images()).logits.square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(g.abs().sum() > 0 for g in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_a_gate_that_helps_opens() -> None:
    """Target: the output with the first gate open and the others closed; all gates start at 0.5."""
    torch.manual_seed(0)
    model = make([0.0, 0.0, 0.0], modules_to_save=[]).train()
    target = logits(make([9.0, -9.0, -9.0], modules_to_save=[]))
    model.train()
    bank = bank_of(model)
    bank.gated_prompt_tokens["default"].requires_grad_(False)
    optimizer = torch.optim.Adam([bank.gated_prompt_gate_logits["default"]], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (model(images()).logits - target).square().mean().mul(100).backward()
        optimizer.step()
    assert (gates(model) > 0.5).tolist() == [True, False, False]
    torch.testing.assert_close(logits(model), target, atol=1e-5, rtol=0)


def test_save_and_load(tmp_path) -> None:
    model = make([0.3, -0.3, 2.0])
    gated_prompt.save(model, tmp_path)
    again = gated_prompt.load(vit(), tmp_path)
    assert again.peft_config["default"].hard_gates is True
    assert torch.equal(logits(again), logits(model))
