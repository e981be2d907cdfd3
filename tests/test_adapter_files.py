"""A damaged adapter is refused by name, and the model works as before."""

import pytest
import torch
from attacks.attack import TOKENS, WEIGHTS, settings
from attacks.damage import ATTACKS
from models import images, vit
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import gated_prompt
from gated_prompt import (
    AdapterMismatchError,
    AdapterNameError,
    DamagedAdapterError,
    GatedPromptConfig,
    GatedPromptError,
)

OTHER_BASES = {"depth": {"num_hidden_layers": 3}, "width": {"hidden_size": 16}, "labels": {"num_labels": 7}}


@pytest.mark.parametrize("name", OTHER_BASES)
def test_another_base(saved, name: str) -> None:
    base = vit(**OTHER_BASES[name])
    keys = list(base.state_dict())
    with torch.no_grad():
        before = base(images()).logits
        with pytest.raises(AdapterMismatchError, match=r"adapter 4, base 3|adapter 32, base 16|shape \(7"):
            gated_prompt.load(base, saved)
        assert list(base.state_dict()) == keys and torch.equal(base(images()).logits, before)


@pytest.mark.parametrize("name", ["nan", "no-weights", "no-config", "labels"])
def test_a_second_adapter_that_is_damaged_leaves_the_first_alone(adapter, name: str) -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=5)).eval()
    keys = list(model.state_dict())
    attack = ATTACKS[name]
    attack.change(adapter)
    with torch.no_grad():
        wanted = model(images()).logits
        for load in [gated_prompt.load, PeftModel.load_adapter][: 1 + attack.peft_too]:
            with pytest.raises(GatedPromptError, match=attack.words):
                load(model, adapter, adapter_name="second")
            assert torch.equal(model(images()).logits, wanted)
            assert list(model.peft_config) == ["default"] and list(model.state_dict()) == keys


def test_load(saved) -> None:
    base = vit()
    frozen = gated_prompt.load(base, saved)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert gated_prompt.load(frozen, str(saved), "second") is frozen and frozen.active_adapter == "default"
    assert list(frozen.peft_config) == ["default", "second"]
    tokens = frozen.base_model.model.gated_prompt.gated_prompt_tokens
    assert torch.equal(tokens["second"], load_file(saved / WEIGHTS)[TOKENS])
    with pytest.raises(AdapterNameError, match=r"has an adapter named 'second' already \(it has: default, second\)"):
        gated_prompt.load(frozen, saved, "second")
    trainable = gated_prompt.load(vit(), saved, is_trainable=True)
    assert {n.split(".")[-2] for n, p in trainable.named_parameters() if p.requires_grad} == {
        "gated_prompt_tokens", "gated_prompt_gate_logits", "gated_prompt_temperatures", "default",
    }  # fmt: skip


def test_no_such_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DamagedAdapterError, match="there is no such folder"):
        gated_prompt.load(vit(), tmp_path / "nowhere")


def test_a_folder_with_a_config_only_can_be_read_and_started_from(adapter) -> None:
    (adapter / WEIGHTS).unlink()
    for cls in (GatedPromptConfig, PeftConfig):
        assert cls.from_pretrained(adapter).num_virtual_tokens == 3
    config = GatedPromptConfig.from_pretrained(adapter)
    with pytest.raises(DamagedAdapterError, match="set inference_mode=False"):
        get_peft_model(vit(), config)
    config.inference_mode = False
    model = get_peft_model(vit(), config)
    assert any("gated_prompt_tokens" in n for n, p in model.named_parameters() if p.requires_grad)


def test_a_config_edited_by_hand_loads(adapter) -> None:
    settings(prompt_dropout=0.3, weights_sha256=KeyError)(adapter)
    assert gated_prompt.load(vit(), adapter).peft_config["default"].prompt_dropout == 0.3
    settings(prompt_dropout=0.2, task_type=KeyError)(adapter)  # a field that an older version did not have
    assert gated_prompt.load(vit(), adapter).peft_config["default"].prompt_dropout == 0.2
