# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What is recomputed in a backward pass uses the adapter of its forward, or is refused."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from gated_prompt import GatedPromptConfig, UnsupportedOperationError
from helpers.models import bank_of, build, images, vit

SETTINGS = {
    "gated": {},
    "deep": {"deep": True},
    "zero": {"deep": True, "zero_start": True},
    "pooled": {"pooling": "prompts"},
    "hard": {"hard_gates": True, "prompt_dropout": 0.3},
}


def crowd(base: nn.Module, **settings: Any) -> PeftModel:
    config = {"num_virtual_tokens": 3, "gate_init": 0.0, "prompt_dropout": 0.0, **settings}
    model = get_peft_model(base, GatedPromptConfig(**config), adapter_name="a")
    model.add_adapter("b", GatedPromptConfig(**{**config, "num_virtual_tokens": 2}))
    generator = torch.Generator().manual_seed(4)
    for key, parameter in model.named_parameters():
        if "gated_prompt_" in key:
            parameter.data.add_(torch.rand(parameter.shape, generator=generator))
    return model.train()


def forward(model: PeftModel, name: str, call: Callable[[torch.Tensor], Any], seed: int) -> torch.Tensor:
    model.set_adapter(name)
    thaw(model)
    return call(images(seed=seed)).logits.square().mean()


def thaw(model: PeftModel) -> None:
    for key, parameter in model.named_parameters():
        if "gated_prompt_" in key:
            parameter.requires_grad_(True)


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    found = {n: p.grad for n, p in model.named_parameters() if "gated_prompt_" in n and p.grad is not None}
    assert {name.rpartition(".")[2] for name in found} == {"a", "b"}
    return found


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_one_backward_through_forwards_of_two_adapters(settings: dict, reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = crowd(vit(), **settings)
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(5)
        loss = forward(model, "a", model, 1) + forward(model, "b", model, 2) + forward(model, "a", model, 3)
        model.eval()
        with model.disable_adapter(), torch.no_grad():
            model(images())
        thaw(model)
        loss.backward()
        found.append(gradients(model))
    assert_same(found[1], found[0])


def around_blocks(model: nn.Module, reentrant: bool) -> None:
    """Let the loop over the blocks call them through torch's function."""
    holder = next(m for m in model.modules() if isinstance(getattr(m, "layers", None), nn.ModuleList))

    class Loop(type(holder)):
        def forward(self, pixels: torch.Tensor, **others: Any) -> Any:
            tokens = self.embeddings(pixels)
            for block in self.layers:
                tokens = checkpoint(block, tokens, use_reentrant=reentrant)
            return self.layernorm(tokens)

    holder.__class__ = Loop


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_blocks_that_others_recompute(settings: dict, reentrant: bool) -> None:
    if reentrant and "deep" in settings:
        pytest.skip("torch: reentrant checkpointing needs inputs that want gradients")
    if not hasattr(build("ViTModel", "ViTConfig"), "layers"):
        pytest.skip("blocks lie in an encoder in this version of transformers")
    found = []
    for checkpointing in (False, True):
        base = build("ViTModel", "ViTConfig")
        model = crowd(base, **settings, modules_to_save=[])
        torch.manual_seed(5)
        if checkpointing:
            around_blocks(base, reentrant)

        def call(pixels: torch.Tensor, model: PeftModel = model) -> Any:
            output = model(pixels)
            tokens = output if isinstance(output, torch.Tensor) else output.last_hidden_state
            return SimpleNamespace(logits=tokens[:, 0])

        loss = forward(model, "a", call, 1) + forward(model, "b", call, 2)
        loss.backward()
        found.append(gradients(model))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
def test_a_model_that_is_recomputed_as_a_whole(reentrant: bool) -> None:
    model = crowd(vit())
    wanted = forward(model, "a", model, 1)
    wanted.backward()
    right = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = checkpoint(lambda pixels: model(pixels).logits, images(seed=1).requires_grad_(), use_reentrant=reentrant)
    output.square().mean().backward()
    for name, gradient in right.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)
    output = checkpoint(lambda pixels: model(pixels).logits, images(seed=1).requires_grad_(), use_reentrant=reentrant)
    model.set_adapter("b")
    with pytest.raises(UnsupportedOperationError, match="adapters were switched since"):
        output.square().mean().backward()


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.delete_adapter("a"), "was deleted or replaced"),
        (lambda model: model.set_adapter("b"), "no longer want gradients"),
    ],
    ids=["deleted", "frozen"],
)
def test_adapters_that_changed_before_the_backward(change: Any, words: str, reentrant: bool) -> None:
    model = crowd(vit())
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.set_adapter("b")
    model.set_adapter("a")
    loss = model(images()).logits.square().mean()
    change(model)
    with pytest.raises(UnsupportedOperationError, match=words):
        loss.backward()


def test_a_backward_inside_a_forward_recomputes_its_own_adapter() -> None:
    """As a penalty on the gradient that a hook computes in the middle of another forward."""
    results = []
    for inside in (False, True):
        model = crowd(vit())
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = forward(model, "a", model, 1)
        model.set_adapter("b")
        thaw(model)
        block = bank_of(model).blocks[1]
        if inside:
            handle = block.register_forward_hook(lambda *_, loss=loss: loss.backward())
        output = model(images(seed=2)).logits.detach()
        if inside:
            handle.remove()
        else:
            loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if "gated_prompt_" in n and p.grad is not None}
        results.append((output, grads))
    assert torch.equal(results[0][0], results[1][0])
    assert_same(results[1][1], results[0][1])
