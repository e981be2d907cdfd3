"""Adapters through transformers' own methods, without a PeftModel, and through PEFT's AutoPeftModel.

Where a head is trained, two things are wrong in transformers for every PEFT method (seen in 4.57.6 and 5.23.0):
`enable_adapters()` after `disable_adapters()` leaves the head off, and with PEFT 0.18 so does a second
`add_adapter()`. The tests of those two therefore use a model without a head.
"""

import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft import AutoPeftModel, PeftModel, get_peft_model
from safetensors.torch import load_file

from gated_prompt import GatedPromptConfig, GatedPromptError, gates, temperatures
from helpers.models import build, images, vit

VERSIONS = tuple(tuple(map(int, module.__version__.split(".")[:2])) for module in (peft, transformers))
own_methods = pytest.mark.skipif(
    VERSIONS[1] >= (5, 24) and VERSIONS[0] < (0, 22),
    reason="add_adapter and load_adapter of transformers 5.24 ask for PEFT 0.22",
)


def config(**settings: object) -> GatedPromptConfig:
    return GatedPromptConfig(**{"num_virtual_tokens": 3, "prompt_dropout": 0.0, **settings})


def headless() -> torch.nn.Module:
    return build("ViTModel", "ViTConfig")


def randomise(model: torch.nn.Module, name: str) -> None:
    torch.manual_seed(7)
    for key, parameter in model.named_parameters():
        if f".{name}." in f"{key}." and ("gated_prompt" in key or "modules_to_save" in key):
            parameter.data.uniform_(0.5, 1.5)


@torch.no_grad()
def output(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(pixel_values=images())[0]


@pytest.fixture
def base_folder(tmp_path) -> Path:
    vit().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@own_methods
def test_add_adapter_trains_prompts_and_head_only() -> None:
    model = vit()
    model.add_adapter(config(), adapter_name="mine")
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 5 and all(".mine" in key for key in trained)
    model.train()(pixel_values=images(), labels=torch.tensor([1, 4])).loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is not None] == trained
    assert gates(model).shape == (3,) and temperatures(model).shape == (4,)


@own_methods
def test_adapter_files_of_transformers_and_peft_are_the_same(tmp_path) -> None:
    model = vit()
    model.add_adapter(config(), adapter_name="default")
    randomise(model, "default")
    model.save_pretrained(tmp_path / "transformers")
    wrapped = PeftModel.from_pretrained(vit(), tmp_path / "transformers")
    assert torch.equal(output(wrapped), output(model))
    wrapped.save_pretrained(tmp_path / "peft")
    ours, theirs = (load_file(tmp_path / by / "adapter_model.safetensors") for by in ("transformers", "peft"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@own_methods
@pytest.mark.parametrize("settings", [{}, {"deep": True}, {"gates": False, "insert_at": 2}], ids=str)
@pytest.mark.parametrize("name", ["default", "other"])
def test_load_adapter(tmp_path, name: str, settings: dict) -> None:
    saved = get_peft_model(vit(), config(**settings))
    randomise(saved, "default")
    saved.save_pretrained(tmp_path)
    model = vit()
    model.load_adapter(tmp_path, adapter_name=name)
    assert torch.equal(output(model), output(saved))
    model.disable_adapters()
    assert torch.equal(output(model), output(vit()))


def test_load_adapter_refuses_what_does_not_fit_and_changes_nothing(tmp_path) -> None:
    get_peft_model(vit(), config()).save_pretrained(tmp_path)
    model = vit(num_hidden_layers=3)
    keys, before = model.state_dict().keys(), output(model)
    with pytest.raises(GatedPromptError, match="adapter 4, base 3"):
        model.load_adapter(tmp_path)
    assert model.state_dict().keys() == keys and torch.equal(output(model), before)


@own_methods
def test_switching_disabling_and_deleting() -> None:
    model, plain, outputs = headless(), output(headless()), {}
    for tokens, name in enumerate(["a", "b"], start=2):
        model.add_adapter(config(num_virtual_tokens=tokens), adapter_name=name)
        randomise(model, name)
        outputs[name] = output(model)
    assert not torch.allclose(outputs["a"], outputs["b"]) and not torch.allclose(outputs["a"], plain)
    for name in ("a", "b", "a"):
        model.set_adapter(name)
        assert model.active_adapters() == [name] and torch.equal(output(model), outputs[name])
    model.disable_adapters()
    assert torch.equal(output(model), plain)
    model.enable_adapters()
    assert torch.equal(output(model), outputs["a"])
    with pytest.raises(GatedPromptError, match="one active adapter"):
        model.set_adapter(["a", "b"])
    model.delete_adapter("b")
    assert model.active_adapters() == ["a"] and torch.equal(output(model), outputs["a"])


@own_methods
def test_get_peft_model_after_add_adapter_is_refused() -> None:
    model = vit()
    model.add_adapter(config())
    with pytest.raises(GatedPromptError, match="already carries"):
        get_peft_model(model, config())


@own_methods
def test_from_pretrained_of_an_adapter_folder(tmp_path, base_folder: Path) -> None:
    """transformers reads the location of the base from the adapter's config."""
    model = transformers.ViTForImageClassification.from_pretrained(base_folder)
    model.add_adapter(config())
    randomise(model, "default")
    model.save_pretrained(tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names and "model.safetensors" not in names
    for loader in (transformers.ViTForImageClassification, transformers.AutoModelForImageClassification):
        assert torch.equal(output(loader.from_pretrained(tmp_path / "adapter")), output(model))


def test_auto_peft_model(tmp_path, base_folder: Path) -> None:
    saved = get_peft_model(transformers.ViTForImageClassification.from_pretrained(base_folder), config())
    randomise(saved, "default")
    saved.save_pretrained(tmp_path / "adapter")
    model = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert type(model.base_model.model).__name__ == "ViTForImageClassification"
    assert torch.equal(output(model), output(saved))


def test_one_import_is_enough_in_a_fresh_process(tmp_path, base_folder: Path) -> None:
    get_peft_model(transformers.ViTForImageClassification.from_pretrained(base_folder), config()).save_pretrained(
        tmp_path / "adapter"
    )
    code = (
        "import sys, gated_prompt; from peft import AutoPeftModel;"
        "model = AutoPeftModel.from_pretrained(sys.argv[1]); print(gated_prompt.gates(model).shape)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "adapter"], capture_output=True, text=True, timeout=120, check=False
    )
    assert "torch.Size([3])" in run.stdout, run.stderr
