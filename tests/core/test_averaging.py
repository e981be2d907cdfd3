"""The moving average against its closed form, and its use in evaluation, files, checkpoints and Trainer."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

import gated_prompt
from gated_prompt import (
    AveragedAdapter,
    AveragingCallback,
    GatedPromptConfig,
    GatedPromptError,
    UnsupportedOperationError,
)
from helpers.models import images, vit
from helpers.trainers import trainer


def make() -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, prompt_dropout=0.0))


def trained(model: PeftModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def move(model: PeftModel, average: AveragedAdapter, steps: int) -> list[dict[str, torch.Tensor]]:
    """Parameters after each of some random steps."""
    seen = []
    for _ in range(steps):
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data.add_(torch.randn_like(parameter))
        average.update()
        seen.append(trained(model))
    return seen


def closed_form(seen: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """decay^(T-1) p_1 + sum_t (1 - decay) decay^(T-t) p_t."""
    last = len(seen) - 1
    weights = [decay**last, *((1 - decay) * decay ** (last - t) for t in range(1, last + 1))]
    assert sum(weights) == pytest.approx(1)
    return {n: sum(w * s[n].double() for w, s in zip(weights, seen, strict=True)) for n in seen[0]}


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.99])
def test_the_average_is_the_closed_form(decay: float) -> None:
    model = make()
    average = AveragedAdapter(model, decay)
    wanted = closed_form(move(model, average, 7), decay)
    own = trained(model)
    with average.applied():
        found = trained(model)
    assert found.keys() == wanted.keys() and len(found) == 5
    for name in wanted:
        torch.testing.assert_close(found[name].double(), wanted[name], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, own[name]) for name, value in trained(model).items())


def test_an_error_inside_gives_the_parameters_back() -> None:
    model = make()
    average = AveragedAdapter(model, 0.5)
    move(model, average, 3)
    own = trained(model)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in trained(model).items())


def test_the_frozen_base_is_not_copied() -> None:
    model = make()
    average = AveragedAdapter(model)
    held = sum(p.numel() for p in average._average.parameters())
    assert held == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert held < 0.05 * sum(p.numel() for p in model.parameters())
    assert not any(p.requires_grad for p in average._average.parameters())


def test_saving_what_was_averaged(tmp_path) -> None:
    model = make()
    average = AveragedAdapter(model, 0.5)
    move(model, average, 3)
    with average.applied(), torch.no_grad():
        gated_prompt.save(model, tmp_path)
        wanted = model.eval()(images()).logits
    loaded = gated_prompt.load(vit(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images()).logits, wanted)
        assert not torch.equal(model.eval()(images()).logits, wanted)


def test_a_resumed_average_is_an_uninterrupted_one(tmp_path) -> None:
    model = make()
    average = AveragedAdapter(model, 0.9)
    move(model, average, 3)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    resumed = AveragedAdapter(model, 0.9)
    resumed.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data.mul_(3)
    average.update()
    resumed.update()
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert int(resumed.state_dict()["n_averaged"]) == 4


def test_what_is_refused() -> None:
    with pytest.raises(GatedPromptError, match=r"decay is 1.0. Expected a number in \[0, 1\)"):
        AveragedAdapter(make(), 1.0)
    with pytest.raises(GatedPromptError, match="no parameter of the model is trainable"):
        AveragedAdapter(make().requires_grad_(False))
    average = AveragedAdapter(make())
    before = copy.deepcopy(average.state_dict())
    state = {**before, "more": torch.zeros(1)}
    key = next(name for name in state if "tokens" in name)
    with pytest.raises(GatedPromptError, match="the model differ in parameters: more"):
        average.load_state_dict(state)
    with pytest.raises(GatedPromptError, match="gated_prompt_tokens"):
        average.load_state_dict({**before, key: torch.zeros(1, 4, 32)})
    assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())


def test_the_trainer_ends_with_the_average(tmp_path) -> None:
    plain, averaged = make(), make()
    trainer(plain, tmp_path / "plain", max_steps=3).train()
    seen = []

    class Watch(AveragingCallback):
        def on_step_end(self, *args, **kwargs) -> None:
            super().on_step_end(*args, **kwargs)
            seen.append(trained(averaged))

    run = trainer(averaged, tmp_path / "averaged", max_steps=3)
    run.add_callback(Watch(decay=0.6))
    run.train()
    assert all(torch.equal(value, seen[-1][name]) for name, value in trained(plain).items())  # training is the same
    wanted = closed_form(seen, 0.6)
    for name, value in trained(averaged).items():
        torch.testing.assert_close(value.double(), wanted[name], atol=1e-6, rtol=1e-5)
        assert not torch.equal(value, seen[-1][name])


def test_the_trainer_is_not_asked_for_two_last_models(tmp_path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    run = trainer(make(), tmp_path, load_best_model_at_end=True, **options)
    run.add_callback(AveragingCallback())
    with pytest.raises(UnsupportedOperationError, match="end training with different models"):
        run.train()
