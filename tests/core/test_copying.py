"""Copies by deepcopy and pickle are complete and independent: hooks, parameters and heads belong to the copy."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model

from gated_prompt import ConfigError, GatedPromptConfig, gates
from helpers.models import bank_of, images, vit


def pickled(model: PeftModel) -> PeftModel:
    return pickle.loads(pickle.dumps(model))


def saved_whole(model: PeftModel) -> PeftModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, pickled, saved_whole]
pytestmark = pytest.mark.parametrize("duplicate", COPIES, ids=lambda f: f.__name__)


def two_adapters() -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, gate_init=0.0))
    model.add_adapter("second", GatedPromptConfig(num_virtual_tokens=2, deep=True, read_from=1, temperature_init=2.0))
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(pixel_values=images()).logits


def test_a_copy_computes_the_same(duplicate: Callable) -> None:
    model = two_adapters()
    twin = duplicate(model)
    assert torch.equal(logits(twin), logits(model))
    with twin.disable_adapter(), model.disable_adapter():
        assert torch.equal(logits(twin), logits(model))
    twin.set_adapter("second")
    assert model.active_adapter == "default"
    model.set_adapter("second")
    assert torch.equal(logits(twin), logits(model))


def test_a_copy_shares_no_parameter_and_no_hook(duplicate: Callable) -> None:
    model = two_adapters()
    twin = duplicate(model)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
    mine, other = bank_of(model), bank_of(twin)
    for module in twin.modules():
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
            if type(hook).__module__.startswith("gated_prompt"):
                assert hook.bank is other and hook.bank is not mine


def test_training_a_copy_leaves_the_original_alone(duplicate: Callable) -> None:
    model = two_adapters()
    twin, wanted = duplicate(model), logits(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=1.0)
    torch.nn.functional.cross_entropy(twin.train()(pixel_values=images()).logits, torch.tensor([1, 4])).backward()
    optimizer.step()
    assert not torch.equal(logits(twin.eval()), wanted)
    assert not torch.equal(gates(twin), gates(model))
    assert not any(m.training for m in model.modules()) and torch.equal(logits(model), wanted)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())


def test_unloading_a_copy_leaves_the_original_alone(duplicate: Callable) -> None:
    model, plain = two_adapters(), logits(vit())
    twin, wanted = duplicate(model), logits(model)
    assert torch.equal(logits(twin.unload()), plain)
    assert torch.equal(logits(model), wanted)


def test_unloading_the_original_leaves_a_copy_alone(duplicate: Callable) -> None:
    model, plain = two_adapters(), logits(vit())
    twin, wanted = duplicate(model), logits(model)
    assert torch.equal(logits(model.unload()), plain)
    assert torch.equal(logits(twin), wanted)
    twin.delete_adapter("default")
    assert not torch.equal(logits(twin), wanted)


def test_an_unloaded_base_carries_nothing(duplicate: Callable) -> None:
    base = duplicate(two_adapters()).unload()
    assert base.state_dict().keys() == vit().state_dict().keys()
    assert not [h for m in base.modules() for h in m._forward_hooks.values() if "gated_prompt" in type(h).__module__]
    again = get_peft_model(duplicate(base), GatedPromptConfig(num_virtual_tokens=4)).eval()
    assert logits(again).isfinite().all()


def test_configs_and_errors_are_copied(duplicate: Callable) -> None:
    config = two_adapters().peft_config["second"]
    assert duplicate(config) == config and duplicate(config) is not config
    error = duplicate(ConfigError(["one", "two"]))
    assert error.faults == ["one", "two"] and str(error) == str(ConfigError(["one", "two"]))
