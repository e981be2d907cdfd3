"""A damaged adapter is refused by name before anything is loaded."""

import json

import pytest
import torch
from models import images, vit
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from gated_prompt import ConfigError, DamagedAdapterError, GatedPromptConfig, GatedPromptError

TOKENS = "base_model.model.gated_prompt.gated_prompt_tokens"


@pytest.fixture
def adapter(tmp_path):
    get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3)).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def set_to(key: str, value: torch.Tensor):
    return lambda tensors: tensors.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(TOKENS), f"lacks {TOKENS}, expected with shape \\(1, 3, 32\\)"),
        (lambda t: t.pop("base_model.model.classifier.weight"), "classifier.weight has shape .* no entry"),
        (
            lambda t: [t.pop(f"base_model.model.classifier.{n}") for n in ("weight", "bias")],
            "lacks the tensors of the head 'base_model.model.classifier.'",
        ),
        (set_to("base_model.model.vit.extra", torch.zeros(1)), "do not belong to this adapter: .*vit.extra"),
        (
            set_to(TOKENS, torch.zeros(1, 4, 32)),
            r"has shape \(1, 4, 32\), but its adapter_config.json means \(1, 3, 32\)",
        ),
        (set_to(TOKENS, torch.full((1, 3, 32), float("nan"))), f"{TOKENS} in .* holds NaN"),
        (set_to(TOKENS, torch.full((1, 3, 32), float("inf"))), "holds NaN or infinite"),
    ],
    ids=["no-tokens", "half-a-head", "no-head", "surplus", "shape", "nan", "inf"],
)
def test_wrong_tensors(adapter, change, words) -> None:
    rewrite(adapter, change)
    base = vit()
    before = list(base.state_dict())
    with pytest.raises(GatedPromptError, match=words):
        PeftModel.from_pretrained(base, adapter)
    assert list(base.state_dict()) == before


@pytest.mark.parametrize("damage", [b"", b"\x00" * 4, b"not safetensors at all, but long enough", None])
def test_unreadable_weights(adapter, damage) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(DamagedAdapterError, match="is not a readable safetensors file"):
        PeftModel.from_pretrained(vit(), adapter)


def test_broken_config(adapter) -> None:
    (adapter / "adapter_config.json").write_text('{"peft_type": "GATED_PROMPT",')
    with pytest.raises(DamagedAdapterError, match="is not valid JSON"):
        GatedPromptConfig.from_pretrained(adapter)


def test_config_with_wrong_values(adapter) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_virtual_tokens": -3, "pooling": "max"}))
    with pytest.raises(ConfigError, match=r"2 fault\(s\)"):
        PeftModel.from_pretrained(vit(), adapter)


def test_config_that_lost_its_record(adapter) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": None}))
    with pytest.raises(DamagedAdapterError, match="lacks num_layers or hidden_size"):
        PeftModel.from_pretrained(vit(), adapter)


def test_a_second_adapter_that_is_damaged_leaves_the_first_alone(adapter) -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=5)).eval()
    with torch.no_grad():
        wanted = model(images()).logits
        rewrite(adapter, set_to(TOKENS, torch.full((1, 3, 32), float("nan"))))
        with pytest.raises(DamagedAdapterError):
            model.load_adapter(adapter, adapter_name="second")
        assert torch.equal(model(images()).logits, wanted)
    assert list(model.peft_config) == ["default"]
