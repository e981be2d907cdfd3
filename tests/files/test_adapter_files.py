"""A damaged adapter is refused by name, and the model works as before."""

import functools

import pytest
import torch
from huggingface_hub import hf_hub_download
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import gated_prompt
from attacks.attack import TOKENS, WEIGHTS, settings
from attacks.damage import ATTACKS
from gated_prompt import (
    AdapterMismatchError,
    AdapterNameError,
    DamagedAdapterError,
    GatedPromptConfig,
    GatedPromptError,
)
from helpers.models import bank_of, images, vit

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
    tokens = bank_of(frozen).gated_prompt_tokens
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


def test_load_from_a_subfolder(adapter, tmp_path) -> None:
    adapter.rename(tmp_path / "moved")
    assert gated_prompt.load(vit(), tmp_path, subfolder="moved").peft_config["default"].num_virtual_tokens == 3
    (tmp_path / "moved" / WEIGHTS).unlink()
    with pytest.raises(DamagedAdapterError, match=f"{tmp_path}/moved lacks {WEIGHTS}"):
        gated_prompt.load(vit(), tmp_path, subfolder="moved")
    with pytest.raises(DamagedAdapterError, match=f"{tmp_path}/other.*: there is no such folder"):
        gated_prompt.load(vit(), tmp_path, subfolder="other")


def test_token_and_revision_reach_the_hub(monkeypatch) -> None:
    asked = []

    @functools.wraps(hf_hub_download)
    def download(*args: object, **kwargs: object) -> None:
        asked.append({key: kwargs.get(key) for key in ("subfolder", "revision", "token")})
        raise OSError("not now")

    monkeypatch.setattr("peft.config.hf_hub_download", download)
    with pytest.raises(DamagedAdapterError, match="not now"):
        gated_prompt.load(vit(), "me/pets", subfolder="a", revision="v1", token="hf_mine")
    assert asked == [{"subfolder": "a", "revision": "v1", "token": "hf_mine"}]


@pytest.mark.parametrize("load", [gated_prompt.load, PeftModel.from_pretrained, GatedPromptConfig.from_pretrained])
@pytest.mark.parametrize("value", [0.0, 0, 0.01, "much"])
def test_files_that_hold_gate_tolerance_are_read(adapter, load, value: object, recwarn) -> None:
    """A field of version 0.1.0: it counts as 0, and an adapter with it may lack another field or have a new one."""
    settings(gate_tolerance=value)(adapter)
    load(adapter) if "Config" in str(load) else load(vit(), adapter)
    told = [str(warning.message) for warning in recwarn if "gate_tolerance" in str(warning.message)]
    assert all(f"gate_tolerance={value!r}" in text and "gated_prompt.prune" in text for text in told)
    assert bool(told) == (value not in (0.0, 0))
    settings(insert_at=KeyError)(adapter)
    assert GatedPromptConfig.from_pretrained(adapter).insert_at == 0


def test_transformers_reads_gate_tolerance_as_we_do(adapter, recwarn) -> None:
    settings(gate_tolerance=0.0)(adapter)
    assert not hasattr(PeftConfig.from_pretrained(adapter), "gate_tolerance")
    assert [w for w in recwarn if "gate_tolerance" in str(w.message)] == []
