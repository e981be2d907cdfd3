"""Activation checkpointing changes memory, never gradients.

Trap: prompts that enter a checkpointed block by a hook can get no gradient at all, without any error, while the
loss stays right. So these tests compare the gradient of every trainable parameter.
"""

import pytest
import torch
from peft import PeftModel, get_peft_model

from gated_prompt import GatedPromptConfig
from helpers.models import bank_of, dinov2, images, vit

SETTINGS = {
    "gated": dict(),
    "insert_at_2": dict(insert_at=2),
    "last_block": dict(insert_at=3, gated_blocks=[3], pooling="prompts"),
    "deep": dict(deep=True),
    "deep_insert_at_2": dict(deep=True, insert_at=2),
    "read_from_1": dict(read_from=1),
    "pooled": dict(pooling="prompts_and_patches"),
    "shallow": dict(gates=False, temperature=False),
    "dropout": dict(prompt_dropout=0.5),
    "training_backbone": dict(eval_backbone=False),
}
BASES = {"vit": vit, "dinov2": dinov2}


def gradients(model: PeftModel, autocast: bool = False) -> dict[str, torch.Tensor]:
    """Gradients of all trainable parameters after one training step on two images, by name."""
    torch.manual_seed(3)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(pixel_values=images().to(model.dtype)).logits
    torch.nn.functional.cross_entropy(logits.float(), torch.tensor([1, 4])).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None for g in found.values()), [n for n, g in found.items() if g is None]
    return found


def enable_checkpointing(model: torch.nn.Module, reentrant: bool) -> None:
    # The old name warns in transformers 5, the new one is not in 4.57.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


def peft_model(
    base: str, checkpointing: str, reentrant: bool, dtype: torch.dtype = torch.float64, **settings: object
) -> PeftModel:
    """The same model every time; `checkpointing` is enabled 'before' get_peft_model, 'after' it, or 'never'."""
    model = BASES[base]().to(dtype)
    if checkpointing == "before":
        enable_checkpointing(model, reentrant)
    torch.manual_seed(2)
    config = GatedPromptConfig(**{"num_virtual_tokens": 3, "gate_init": -1.0, "prompt_dropout": 0.0, **settings})
    model = get_peft_model(model, config)
    if config.temperature:  # 1.0 would hide a temperature that is applied twice or not at all
        bank = bank_of(model)
        bank.gated_prompt_temperatures["default"].data.uniform_(0.5, 2.0)
    if checkpointing == "after":
        enable_checkpointing(model.base_model.model, reentrant)
    return model


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, f"{name}: the gradient is zero, the test would prove nothing"
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance * gradient.abs().max().item())


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
@pytest.mark.parametrize("checkpointing", ["before", "after"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("base", BASES)
def test_gradients_are_those_without_checkpointing(
    base: str, settings: dict, checkpointing: str, reentrant: bool
) -> None:
    wanted = gradients(peft_model(base, "never", reentrant, **settings))
    model = peft_model(base, checkpointing, reentrant, **settings)
    assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert_same(gradients(model), wanted)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
def test_blocks_are_computed_again(reentrant: bool) -> None:
    """The comparison above proves nothing if checkpointing is silently off: count the calls of a query projection."""
    runs = {}
    for checkpointing in ("never", "after"):
        model, calls = peft_model("vit", checkpointing, reentrant), []
        _query(model).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        gradients(model)
        runs[checkpointing] = len(calls)
    assert runs == {"never": 1, "after": 2}


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
def test_under_bfloat16_autocast(reentrant: bool) -> None:
    wanted = gradients(peft_model("vit", "never", reentrant, torch.float32), autocast=True)
    assert_same(gradients(peft_model("vit", "after", reentrant, torch.float32), autocast=True), wanted, 1e-6)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
def test_two_forwards_of_different_sizes_before_one_backward(reentrant: bool) -> None:
    """Recomputation must not depend on what ran in between."""
    found = []
    for checkpointing in ("never", "after"):
        model = peft_model("dinov2", checkpointing, reentrant).train()
        loss = sum(model(pixel_values=images(size=size).double()).logits.square().mean() for size in (32, 48))
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert_same(found[1], found[0])


def test_frozen_parameters_get_no_gradient() -> None:
    model = peft_model("vit", "after", True, insert_at=2)
    gradients(model)
    assert not [n for n, p in model.named_parameters() if p.grad is not None and not p.requires_grad]


def _query(model: PeftModel) -> torch.nn.Module:
    return next(m for n, m in model.named_modules() if n.rpartition(".")[2] in ("q_proj", "query"))
