"""Adapters loaded by transformers' `load_adapter`, or into a name in use, are checked like any other."""

import json
import random
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file

from attacks.attack import TOKENS, WEIGHTS
from attacks.damage import ATTACKS
from attacks.random_bytes import SMALL, damage
from gated_prompt import AdapterMismatchError, DamagedAdapterError, GatedPromptConfig, GatedPromptError
from gated_prompt import UnsupportedOperationError as Unsupported
from gated_prompt.architecture.load_adapter import LOSES_ADAPTERS
from helpers.models import bank_of, images, vit

HERE = f"transformers {transformers.__version__}"
VERSIONS = tuple(tuple(map(int, module.__version__.split(".")[:2])) for module in (peft, transformers))


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_state(model: torch.nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    found = model.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("name", ATTACKS)
def test_transformers_load_adapter_refuses_damage(adapter: Path, saved: Path, name: str, monkeypatch) -> None:
    """PEFT or transformers refuse what is wrong before PEFT knows the method; we refuse the rest."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    attack = ATTACKS[name]
    if name == "lora":
        pytest.skip("a config of LoRA is no damaged one for PEFT")
    attack.change(adapter)
    base = vit()
    before, attributes = state(base), set(vars(base))
    error, words = (attack.error, attack.words) if attack.peft_too else (Exception, None)
    with pytest.raises(error, match=words):
        base.load_adapter(adapter)
    assert_state(base, before)
    assert set(vars(base)) == attributes
    base.load_adapter(saved)  # and it can still take a good one
    assert torch.equal(base.gated_prompt.gated_prompt_tokens["default"], load_file(saved / WEIGHTS)[TOKENS])


@pytest.mark.parametrize("modules_to_save", [None, []], ids=["head", "no-head"])
def test_transformers_load_adapter_to_train_on(tmp_path: Path, modules_to_save) -> None:
    saved = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, modules_to_save=modules_to_save))
    saved.save_pretrained(tmp_path)
    base = vit()
    before = state(base)
    if LOSES_ADAPTERS:
        with pytest.raises(Unsupported, match=rf"{HERE} loses tensors .* is_trainable=True. Use gated_prompt.load"):
            base.load_adapter(tmp_path, is_trainable=True)
        assert_state(base, before)
    else:
        base.load_adapter(tmp_path, is_trainable=True)
        assert any(parameter.requires_grad for parameter in base.parameters())
        assert torch.equal(base.eval()(images()).logits, saved.eval()(images()).logits)


def test_transformers_load_adapter_from_memory(saved: Path) -> None:
    base, config = vit(), GatedPromptConfig(num_virtual_tokens=3)
    tensors = load_file(saved / WEIGHTS)
    if LOSES_ADAPTERS:
        with pytest.raises(Unsupported, match=rf"{HERE} loses tensors of adapters with adapter_state_dict"):
            base.load_adapter(peft_config=config, adapter_state_dict=tensors)
        assert not hasattr(base, "gated_prompt")
    else:
        base.load_adapter(peft_config=config, adapter_state_dict=tensors)
        assert torch.equal(base.gated_prompt.gated_prompt_tokens["default"], tensors[TOKENS])


@pytest.mark.skipif(
    VERSIONS[1] >= (5, 24) and VERSIONS[0] < (0, 22),
    reason="add_adapter of transformers 5.24 asks for PEFT 0.22",
)
def test_a_new_adapter_with_the_settings_of_a_saved_one_starts_anew(saved: Path) -> None:
    config = GatedPromptConfig.from_pretrained(saved)
    config.inference_mode = False
    base = vit()
    if LOSES_ADAPTERS:  # cannot be told from load_adapter(is_trainable=True)
        with pytest.raises(Unsupported, match="needs a config that was not read from the folder"):
            base.add_adapter(config)
    else:
        torch.manual_seed(9)
        base.add_adapter(config)
        assert not torch.equal(base.gated_prompt.gated_prompt_tokens["default"], load_file(saved / WEIGHTS)[TOKENS])


IN_USE = {  # what of the attacks is in the tensors, with the error and words that a name in use gives
    "no-tokens": (
        DamagedAdapterError,
        r"lack base_model.model.gated_prompt.gated_prompt_tokens.default. The adapter",
    ),
    "prompts": (AdapterMismatchError, r"has shape \(1, 3, 32\), .* shape \(1, 4, 32\)"),
    "width": (AdapterMismatchError, r"has shape \(1, 3, 32\), .* shape \(1, 3, 16\)"),
    "integers": (AdapterMismatchError, "gated_prompt_tokens.default has .* type torch.int32"),
    "nan": (DamagedAdapterError, "gated_prompt_tokens.default has NaN or infinite"),
    "inf": (DamagedAdapterError, "gated_prompt_tokens.default has NaN or infinite"),
    "nan-head": (DamagedAdapterError, "bias has NaN or infinite"),
    "labels": (AdapterMismatchError, r"shape \(5,\), .* shape \(7,\)"),
    "integer-head": (AdapterMismatchError, r"type torch.int32"),
}
UNREADABLE = ("truncated", "header-only", "empty", "zeros", "garbage", "no-weights", "half-a-head", "no-head")


@pytest.mark.parametrize("name", [*IN_USE, *UNREADABLE])
def test_a_name_in_use(saved: Path, adapter: Path, name: str, monkeypatch) -> None:
    """PEFT opens the file itself here: what it cannot read, or lacks a head, fails with its own error."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3))
    before = state(model)
    ATTACKS[name].change(adapter)
    error, words = IN_USE.get(name, (Exception, None))
    with pytest.raises(error, match=words):
        model.load_adapter(adapter, "default")
    assert_state(model, before)
    model.load_adapter(saved, "default")
    assert torch.equal(bank_of(model).gated_prompt_tokens["default"], load_file(saved / WEIGHTS)[TOKENS])


def test_an_adapter_with_other_parts_is_refused_for_a_name_in_use(saved: Path) -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, gates=False))
    before = state(model)
    with pytest.raises(AdapterMismatchError, match=r"include .*gate_logits.*, which this adapter does not have"):
        model.load_adapter(saved, "default")
    assert_state(model, before)


def test_state_dicts_of_other_kinds_pass() -> None:
    model, other = (get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3)) for _ in range(2))
    model.load_state_dict(other.state_dict())
    assert_state(model, state(other))
    backbone = {key: value + 1 for key, value in model.state_dict().items() if ".vit." in key}
    assert backbone and not model.load_state_dict(backbone, strict=False).unexpected_keys
    base = model.unload()
    assert not base._load_state_dict_pre_hooks


@pytest.mark.filterwarnings("ignore")
def test_random_bytes(tmp_path: Path, monkeypatch) -> None:
    """As in `test_fuzz.py`: refused without any change, or loaded exactly."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    random_, outcomes = random.Random(11), set()
    get_peft_model(vit(**SMALL), GatedPromptConfig(num_virtual_tokens=2)).save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    config = tmp_path / "adapter_config.json"  # without the fingerprint, which would find every change
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_sha256": None}))
    bare, wrapped = vit(**SMALL), get_peft_model(vit(**SMALL), GatedPromptConfig(num_virtual_tokens=2))
    for _ in range(60):
        (tmp_path / WEIGHTS).write_bytes(damage(whole, random_))
        for model in (bare, wrapped):
            before = state(model)
            refusals = (GatedPromptError, SafetensorError, KeyError) if model is wrapped else GatedPromptError
            try:
                model.load_adapter(tmp_path, "default") if model is wrapped else model.load_adapter(tmp_path)
            except refusals:
                assert_state(model, before)
                outcomes.add((model is bare, "refused"))
            else:
                bank = model.gated_prompt if model is bare else bank_of(model)
                assert torch.equal(bank.gated_prompt_tokens["default"], load_file(tmp_path / WEIGHTS)[TOKENS].float())
                outcomes.add((model is bare, "loaded"))
                if model is bare:
                    bare = vit(**SMALL)
    assert len(outcomes) == 4


def test_peft_config_reads_through_the_class_of_the_method(adapter: Path) -> None:
    """What transformers relies on; configs of other methods pass unchanged."""
    ATTACKS["nan"].change(adapter)
    with pytest.raises(DamagedAdapterError, match="holds NaN"):
        PeftConfig.from_pretrained(adapter)
    LoraConfig(r=3, target_modules=["query"]).save_pretrained(adapter)
    for cls in (PeftConfig, LoraConfig):
        found = cls.from_pretrained(adapter)
        assert type(found) is LoraConfig and found.r == 3
