"""A damaged adapter is refused by name, and the model works as before."""

import json
from pathlib import Path

import pytest
import torch
from models import images, vit
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import gated_prompt
from gated_prompt import (
    AdapterMismatchError,
    AdapterNameError,
    ConfigError,
    DamagedAdapterError,
    GatedPromptConfig,
    GatedPromptError,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENS = "base_model.model.gated_prompt.gated_prompt_tokens"
HEAD = "base_model.model.classifier."
OTHER_BASES = {"depth": {"num_hidden_layers": 3}, "width": {"hidden_size": 16}, "labels": {"num_labels": 7}}


def write(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def cut(count: int):
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:count])


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def settings(**changes: object):
    def change(folder: Path) -> None:
        values = {**json.loads((folder / CONFIG).read_text()), **changes}
        (folder / CONFIG).write_text(json.dumps({key: v for key, v in values.items() if v is not KeyError}))

    return change


def tensors(change):
    """Change the tensors; without their fingerprint, so that what is looked for is found by its own check."""

    def rewrite(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)
        settings(weights_sha256=None)(folder)

    return rewrite


def put(key: str, value: torch.Tensor):
    return tensors(lambda found: found.__setitem__(key, value))


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def repeat_a_key(folder: Path) -> None:
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace("{", '{"insert_at": 1,', 1))


def swap_two_blocks(folder: Path) -> None:
    found = load_file(folder / WEIGHTS)
    found[TOKENS] = found[TOKENS].flip(1).contiguous()
    save_file(found, folder / WEIGHTS)


# Name: what is done to the files, the error, words of its message, whether PeftModel.from_pretrained says the same.
DAMAGE = {
    "truncated": (cut(-20), DamagedAdapterError, f"{WEIGHTS} is not a readable safetensors file", True),
    "header-only": (cut(40), DamagedAdapterError, "is not a readable safetensors file", True),
    "empty": (write(WEIGHTS, b""), DamagedAdapterError, "is not a readable safetensors file", True),
    "zeros": (write(WEIGHTS, b"\x00" * 4), DamagedAdapterError, "is not a readable safetensors file", True),
    "garbage": (write(WEIGHTS, b"no tensors, but long enough"), DamagedAdapterError, "is not a readable", True),
    "no-weights": (remove(WEIGHTS), DamagedAdapterError, f"lacks {WEIGHTS}, expected beside", True),
    "pickle": (pickle, DamagedAdapterError, r"adapter_model.bin, expected .*convert it once: safetensors.torch", True),
    "no-config": (remove(CONFIG), DamagedAdapterError, f"lacks {CONFIG}.*the folder holds: .*{WEIGHTS}", False),
    "half-config": (write(CONFIG, b'{"peft_type": "GATED'), DamagedAdapterError, f"{CONFIG} is not valid JSON", False),
    "no-text": (write(CONFIG, b"\xff\xfe\x00"), DamagedAdapterError, "is not valid JSON", False),
    "list": (write(CONFIG, b"[1, 2]"), DamagedAdapterError, "holds a list, expected a JSON object", False),
    "nested": (write(CONFIG, b"[" * 100_000), DamagedAdapterError, "is not valid JSON", False),
    "repeated-key": (repeat_a_key, DamagedAdapterError, "repeated key 'insert_at'", True),
    "misspelt-key": (
        settings(insert_at=KeyError, insert_ta=0),
        DamagedAdapterError,
        "unknown field.* 'insert_ta' and lacks insert_at",
        True,
    ),
    "no-method": (settings(peft_type=KeyError), DamagedAdapterError, "lacks 'peft_type'", False),
    "lora": (
        lambda folder: LoraConfig(target_modules=["query"]).save_pretrained(folder),
        AdapterMismatchError,
        "peft_type 'LORA', expected 'GATED_PROMPT'",
        False,
    ),
    "wrong-values": (settings(num_virtual_tokens=-3, pooling="max"), ConfigError, r"2 fault\(s\)", True),
    "wrong-types": (settings(deep=1, gate_init="-5", gated_blocks=[0.5]), ConfigError, r"3 fault\(s\)", True),
    "huge": (settings(num_layers=10**30), ConfigError, "num_layers is 10{30}; None or an integer", True),
    "huge-float": (settings(gate_init=10**400), ConfigError, "gate_init is .*; a number", True),
    "not-finite": (settings(temperature_init=float("inf")), ConfigError, "temperature_init is inf", True),
    "task": (settings(task_type="IMAGES"), ConfigError, "Invalid task type", True),
    "lost-record": (settings(num_layers=None), DamagedAdapterError, "lacks num_layers or hidden_size", True),
    "other-depth": (settings(num_layers=5), DamagedAdapterError, r"has shape \(3,\), but .* means \(4,\)", True),
    "other-prefix": (settings(detected_prefix_tokens=2), AdapterMismatchError, "adapter 2, base 1", True),
    "no-tokens": (tensors(lambda t: t.pop(TOKENS)), DamagedAdapterError, rf"lacks {TOKENS}, .*\(1, 3, 32\)", True),
    "prompts": (put(TOKENS, torch.zeros(1, 4, 32)), DamagedAdapterError, r"shape \(1, 4, 32\), .*\(1, 3, 32\)", True),
    "width": (put(TOKENS, torch.zeros(1, 3, 16)), DamagedAdapterError, r"shape \(1, 3, 16\), .*\(1, 3, 32\)", True),
    "integers": (put(TOKENS, torch.zeros(1, 3, 32).int()), DamagedAdapterError, f"{TOKENS} .* type I32", True),
    "nan": (put(TOKENS, torch.full((1, 3, 32), float("nan"))), DamagedAdapterError, f"{TOKENS} in .* holds NaN", True),
    "inf": (put(TOKENS, torch.full((1, 3, 32), float("inf"))), DamagedAdapterError, "holds NaN or infinite", True),
    "nan-head": (put(HEAD + "bias", torch.full((5,), float("nan"))), DamagedAdapterError, "bias in .* NaN", True),
    "surplus": (put("base_model.model.vit.extra", torch.zeros(1)), DamagedAdapterError, "do not belong .*extra", True),
    "surplus-head": (put(HEAD + "scale", torch.zeros(5)), AdapterMismatchError, "holds classifier.scale", True),
    "half-a-head": (
        tensors(lambda t: t.pop(HEAD + "weight")),
        AdapterMismatchError,
        "classifier.weight has shape .* no entry",
        True,
    ),
    "no-head": (
        tensors(lambda t: [t.pop(HEAD + name) for name in ("weight", "bias")]),
        DamagedAdapterError,
        "lacks the tensors of the head 'base_model.model.classifier.'",
        True,
    ),
    "labels": (put(HEAD + "bias", torch.zeros(7)), AdapterMismatchError, r"shape \(5,\) .* shape \(7,\) in", True),
    "integer-head": (put(HEAD + "bias", torch.zeros(5).int()), AdapterMismatchError, "of whole numbers", True),
    "other-weights": (swap_two_blocks, DamagedAdapterError, "not the file that its adapter_config.json was", True),
}


@pytest.fixture
def base() -> torch.nn.Module:
    return vit()


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(adapter, saved, base, name: str) -> None:
    damage, error, words, peft_too = DAMAGE[name]
    damage(adapter)
    attributes, keys = set(vars(base)), list(base.state_dict())
    with torch.no_grad():
        before = base(images()).logits
        for loader in [gated_prompt.load, PeftModel.from_pretrained][: 1 + peft_too]:
            with pytest.raises(error, match=words) as caught:
                loader(base, adapter)
            assert type(caught.value) is error and str(adapter) in str(caught.value)
            assert set(vars(base)) == attributes and list(base.state_dict()) == keys
            assert torch.equal(base(images()).logits, before)
        model = gated_prompt.load(base, saved).eval()  # and it can still take a good one
        assert not torch.allclose(model(images()).logits, before)
        assert torch.equal(model.unload()(images()).logits, before)


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
    DAMAGE[name][0](adapter)
    with torch.no_grad():
        wanted = model(images()).logits
        for load in [gated_prompt.load, PeftModel.load_adapter][: 1 + DAMAGE[name][3]]:
            with pytest.raises(GatedPromptError, match=DAMAGE[name][2]):
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
