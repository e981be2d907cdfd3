"""Random damage to the bytes of an adapter: refused with one of our errors, or loaded exactly."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load as parse

import gated_prompt
from attacks.random_bytes import SMALL, damage
from gated_prompt import GatedPromptConfig, GatedPromptError
from helpers.models import bank_of, vit

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHANGES = 1000


def check_loaded(model: torch.nn.Module, folder: Path) -> None:
    """The tensors on the model are those of the file, and the settings those of the config."""
    saved = parse((folder / WEIGHTS).read_bytes())
    own = bank_of(model)
    for name in own.adapter_layer_names:
        key = f"base_model.model.gated_prompt.{name}"
        assert (key in saved) == ("default" in getattr(own, name))
        if key in saved:
            assert torch.equal(getattr(own, name)["default"], saved[key].float())
    head = model.base_model.model.classifier.modules_to_save["default"].state_dict()
    assert all(torch.equal(value, saved[f"base_model.model.classifier.{name}"]) for name, value in head.items())
    values, config = json.loads((folder / CONFIG).read_text()), model.peft_config["default"].to_dict()
    for name in values.keys() & config.keys() - {"inference_mode", "base_model_name_or_path"}:
        assert config[name] == (tuple(values[name]) if isinstance(config[name], tuple) else values[name]), name


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("target", [WEIGHTS, CONFIG])
def test_random_bytes(tmp_path, monkeypatch, target: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    random_ = random.Random(7)
    base, healthy, folder = vit(**SMALL), tmp_path / "healthy", tmp_path / "damaged"
    get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2)).save_pretrained(healthy)
    # Without the fingerprint, which would refuse every change of the weights before another check is asked.
    values = {**json.loads((healthy / CONFIG).read_text()), "weights_sha256": None}
    (healthy / CONFIG).write_text(json.dumps(values, indent=2))
    shutil.copytree(healthy, folder)
    base = vit(**SMALL)
    attributes, before = set(vars(base)), {key: value.clone() for key, value in base.state_dict().items()}
    whole, loaded, refused, slowest = (healthy / target).read_bytes(), 0, 0, 0.0
    for _ in range(CHANGES // 2):
        (folder / target).write_bytes(damage(whole, random_))
        start = time.perf_counter()
        try:
            model = gated_prompt.load(base, folder)
        except GatedPromptError:
            refused += 1
        else:
            check_loaded(model, folder)
            model.unload()
            loaded += 1
        slowest = max(slowest, time.perf_counter() - start)
        after = base.state_dict()
        assert set(vars(base)) == attributes and after.keys() == before.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())
    assert loaded + refused == CHANGES // 2 and min(loaded, refused) > 10
    assert slowest < 10  # seconds: a damaged size must not be allocated
