# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What others put beside the prompts: hooks on keys, LoRA with dropout, a second adapted model, half precision."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

import gated_prompt
from gated_prompt import AveragedAdapter, GatedPromptConfig, GatedPromptError, parameter_groups
from helpers.models import bank_of, images, vit

PASSIVE: list[dict[str, Any]] = [{}, {"deep": True}, {"deep": True, "zero_start": True}]


def prompted(base: nn.Module, **settings: Any) -> PeftModel:
    config = {"num_virtual_tokens": 3, "gate_init": 0.0, "prompt_dropout": 0.0, **settings}
    model = get_peft_model(base, GatedPromptConfig(**config))
    for parameter in bank_of(model).parameters():
        parameter.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(3))
    return model.eval()


def with_lora(base: nn.Module, dropout: float = 0.0) -> nn.Module:
    names = [name.rpartition(".")[2] for name, _ in base.named_modules()]
    targets = [name for name in ("q_proj", "k_proj", "v_proj", "query", "key", "value") if name in names]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, lora_dropout=dropout)
    torch.manual_seed(6)
    return inject_adapter_in_model(config, base)


@pytest.mark.parametrize("settings", PASSIVE, ids=["gated", "deep", "zero"])
@pytest.mark.parametrize("when", ["plain", "lora after the hook", "lora before the hook"])
@torch.no_grad()
def test_hooks_of_users_see_the_tokens_of_images_once(when: str, settings: dict) -> None:
    base, seen = vit(), []
    if when == "lora before the hook":
        base = with_lora(base)
    parts = gated_prompt.find_vision_transformer(base).attentions[-1]
    for holder, name in ((parts.block, parts.norm), (parts.attention, parts.key), (parts.attention, parts.value)):
        module = holder.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
        module.register_forward_hook(lambda _, args, output: seen.append(output.shape))
    if when == "lora after the hook":
        base = with_lora(base)
    model = prompted(base, **settings)
    found = model(images()).logits
    assert seen == [(2, 17, 32)] * 6
    bare = prompted(with_lora(vit()) if "lora" in when else vit(), **settings)
    assert torch.equal(found, bare(images()).logits)


def dropouts(module: nn.Module, part: str = "") -> set[bool]:
    return {m.training for name, m in module.named_modules() if isinstance(m, nn.Dropout) and m.p and part in name}


def test_dropout_of_trained_lora_is_on_beside_frozen_blocks() -> None:
    base = with_lora(vit(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5), dropout=0.5)
    model = prompted(base).train()
    blocks = nn.ModuleList(bank_of(model).blocks)
    assert dropouts(blocks, "lora_dropout") == {True}
    plain = {m.training for b in blocks for n, m in b.named_modules() if isinstance(m, nn.Dropout) and "lora" not in n}
    assert plain == {False}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)
    model.train()
    assert dropouts(blocks, "lora_dropout") == {False}  # a frozen part of the base
    model.eval()
    assert not any(m.training for block in blocks for m in block.modules())


def test_switching_between_adapters_with_other_modes_of_the_backbone() -> None:
    model = get_peft_model(vit(hidden_dropout_prob=0.5), GatedPromptConfig(num_virtual_tokens=3), adapter_name="a")
    model.add_adapter("b", GatedPromptConfig(num_virtual_tokens=3, eval_backbone=False))
    blocks = nn.ModuleList(bank_of(model).blocks)
    for mode in (True, False):
        for name, wanted in (("a", False), ("b", True), ("b", True), ("a", False)):
            model.train(mode)
            model.set_adapter(name)
            assert dropouts(blocks) == {wanted and mode}
            assert model.training is mode


def test_two_adapted_models_in_one_module() -> None:
    two = nn.ModuleDict({"rgb": prompted(vit()), "depth": prompted(vit(), deep=True, zero_start=True)})
    groups = {group["name"]: group for group in parameter_groups(two, lr=0.1, gates={"lr": 1.0})}
    wanted = {side: {g["name"]: g["params"] for g in parameter_groups(model, lr=0.1)} for side, model in two.items()}
    for name in wanted["rgb"].keys() | wanted["depth"].keys():
        parts = [*wanted["rgb"].get(name, []), *wanted["depth"].get(name, [])]
        assert [id(p) for p in groups[name]["params"]] == [id(p) for p in parts]
    assert groups["gates"]["lr"] == 1.0 and "other" not in groups
    assert gated_prompt.has_prompts(two)
    for function in (gated_prompt.gates, gated_prompt.temperatures, gated_prompt.selection_ratios):
        with pytest.raises(GatedPromptError, match=r"2 models with gated prompts, at 'rgb.*', 'depth.*'"):
            function(two)
    with pytest.raises(GatedPromptError, match="2 models with gated prompts"):
        gated_prompt.prune(two, 0.1)
    assert gated_prompt.gates(two["rgb"]).shape == (3,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_of_half_precision_moves(dtype: torch.dtype) -> None:
    model = prompted(vit()).to(dtype)
    average = AveragedAdapter(model, decay=0.999)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    exact = 1.0
    for step in range(501):
        for parameter in parameters.values():
            parameter.data.fill_(1.0 if step == 0 else 2.0)
        average.update()
        exact = exact if step == 0 else 0.999 * exact + 0.002
    state = average.state_dict()
    for name, parameter in parameters.items():
        assert state[name].dtype == torch.float32
        torch.testing.assert_close(state[name], torch.full_like(state[name], exact))
        assert parameter.dtype == dtype
    with average.applied():
        assert all(bool((p == torch.tensor(exact).to(dtype)).all()) for p in parameters.values())
    assert all(bool((p == 2).all()) for p in parameters.values())
    other = AveragedAdapter(model, decay=0.999)
    other.load_state_dict({name: value.to(dtype) for name, value in state.items()})
