"""Parameter groups: every trainable parameter once, each with its group's settings."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model

from gated_prompt import GatedPromptConfig, GatedPromptError, parameter_groups
from helpers.models import images, vit


def make(**settings: object) -> PeftModel:
    return get_peft_model(vit(), GatedPromptConfig(**{"num_virtual_tokens": 3, **settings}))


def names(model: torch.nn.Module, groups: list[dict]) -> dict[str, list[str]]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    short = {g["name"]: [by_id[id(p)] for p in g["params"]] for g in groups}
    return {
        name: [part.replace("base_model.model.", "").replace("gated_prompt.gated_prompt_", "") for part in parts]
        for name, parts in short.items()
    }


HEAD = ["classifier.modules_to_save.default.weight", "classifier.modules_to_save.default.bias"]
GATES, TEMPERATURES = ["gate_logits.default"], ["temperatures.default"]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"prompts": ["tokens.default"], "gates": GATES, "temperatures": TEMPERATURES, "head": HEAD}),
        (
            {"prompt_rank": 2},
            {
                "prompts": ["tokens_a.default", "tokens_b.default"],
                "gates": GATES,
                "temperatures": TEMPERATURES,
                "head": HEAD,
            },
        ),
        ({"deep": True}, {"prompts": ["tokens.default"], "temperatures": TEMPERATURES, "head": HEAD}),
        ({"gates": False, "temperature": False, "modules_to_save": []}, {"prompts": ["tokens.default"]}),
    ],
    ids=["gated", "low-rank", "deep", "prompts-only"],
)
def test_the_groups_are_a_partition_of_what_is_trained(settings: dict, wanted: dict) -> None:
    model = make(**settings)
    groups = parameter_groups(model, lr=0.1)
    assert names(model, groups) == wanted
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_only_the_active_adapter_and_its_head_are_trained() -> None:
    model = make()
    model.add_adapter("birds", GatedPromptConfig(num_virtual_tokens=2))
    model.set_adapter("birds")
    found = names(model, parameter_groups(model, lr=0.1))
    assert all(part.split(".")[-1] == "birds" or ".birds." in part for parts in found.values() for part in parts)
    assert set(found) == {"prompts", "gates", "temperatures", "head"}


def test_what_else_is_trained_is_a_group_of_its_own() -> None:
    queries = [name for name, _ in vit().named_modules() if name.endswith(("query", "q_proj"))]
    base = inject_adapter_in_model(LoraConfig(r=2, target_modules=queries), vit())
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:  # PEFT versions differ in whether they freeze it
            parameter.requires_grad_(True)
    found = parameter_groups(model, lr=0.1, weight_decay=0.2)
    assert [g["name"] for g in found] == ["prompts", "gates", "temperatures", "head", "other"]
    assert all("lora_" in name for name in names(model, found)["other"])
    assert {k: v for k, v in found[-1].items() if k != "params"} == {"name": "other", "lr": 0.1, "weight_decay": 0.2}


def test_settings_fall_back_one_by_one() -> None:
    found = parameter_groups(
        make(),
        lr=0.1,
        weight_decay=0.01,
        prompts={"weight_decay": 0.0},
        gates={"lr": 2},
        head={"lr": 0.3, "weight_decay": 0.5},
    )
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in found] == [
        ("prompts", 0.1, 0.0),
        ("gates", 2, 0.01),
        ("temperatures", 0.1, 0.01),
        ("head", 0.3, 0.5),
    ]


def test_an_optimizer_steps_each_group_by_its_own_rate() -> None:
    model = make(prompt_dropout=0.0).train()
    rates = {"prompts": 0.1, "gates": 0.2, "temperatures": 0.3, "head": 0.4}
    groups = parameter_groups(model, lr=9.0, **{name: {"lr": lr} for name, lr in rates.items()})
    optimizer = torch.optim.SGD(groups)
    model(images()).logits.square().sum().backward()
    before = {g["name"]: [p.detach().clone() for p in g["params"]] for g in optimizer.param_groups}
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter, old in zip(group["params"], before[group["name"]], strict=True):
            torch.testing.assert_close(parameter.detach(), old - rates[group["name"]] * parameter.grad)
    again = torch.optim.SGD(parameter_groups(model, lr=1.0))
    again.load_state_dict(optimizer.state_dict())
    assert {g["name"]: g["lr"] for g in again.param_groups} == rates


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head": {"learning_rate": 0.1}}, "head has the setting 'learning_rate'. Expected lr or weight_decay"),
        ({"head": {"lr": -0.1}}, "head lr=-0.1. Expected a finite number of at least 0"),
        ({"lr": float("nan")}, "parameter_groups: lr=nan. Expected a finite number"),
        ({"weight_decay": "0.1"}, "weight_decay='0.1'. Expected a finite number"),
        (
            {"deep": True, "gates": {"lr": 0.1}},
            "gates={'lr': 0.1} is given, but the group has no trainable parameters",
        ),
    ],
)
def test_what_is_refused(settings: dict, words: str) -> None:
    model = make(deep=settings.pop("deep", False))
    with pytest.raises(GatedPromptError) as caught:
        parameter_groups(model, **{"lr": 0.1, **settings})
    assert words in str(caught.value)


def test_a_model_with_nothing_to_train() -> None:
    model = make()
    model.requires_grad_(False)
    with pytest.raises(GatedPromptError, match="no parameter of the model is trainable"):
        parameter_groups(model, lr=0.1)
    with pytest.raises(GatedPromptError, match="carries no gated prompts"):
        parameter_groups(vit(), lr=0.1)
