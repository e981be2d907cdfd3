"""Bad input raises a clear error before anything changes."""

from dataclasses import replace

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

from gated_prompt import AdapterMismatchError, ArchitectureError, GatedPromptConfig, GatedPromptError
from helpers.models import dinov2, images, vit


def swin() -> torch.nn.Module:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    return transformers.SwinForImageClassification(config)


def bert() -> torch.nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    )


def resnet() -> torch.nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (swin, "SwinForImageClassification has stages of blocks .* hierarchical"),
        (bert, "none read patches: encoder.layer reads the word embeddings"),
        (resnet, "ResNetForImageClassification has no list of two or more identical transformer blocks"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), "Sequential has no list"),
    ],
    ids=["swin", "bert", "resnet", "mlp"],
)
def test_models_without_vit_blocks(make, words) -> None:
    base = make()
    before = list(base.state_dict())
    with pytest.raises(ArchitectureError, match=words):
        get_peft_model(base, GatedPromptConfig())
    assert list(base.state_dict()) == before
    assert all(p.requires_grad for p in base.parameters())


def test_target_modules_must_name_blocks() -> None:
    path = next(n for n, m in vit().named_modules() if isinstance(m, torch.nn.ModuleList))
    with pytest.raises(ArchitectureError, match=rf"target_modules='vit.nothing' names no list .*. Found: {path}"):
        get_peft_model(vit(), GatedPromptConfig(target_modules="vit.nothing"))
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2, target_modules=path))
    assert model.peft_config["default"].num_layers == 4


@pytest.mark.parametrize("make", [vit, dinov2], ids=["vit", "dinov2"])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"num_hidden_layers": 5}, "blocks: adapter 4, base 5"),
        ({"hidden_size": 64}, "width: adapter 32, base 64"),
        ({"num_labels": 7}, r"head's classifier.weight has shape \(7, "),
    ],
)
def test_an_adapter_that_does_not_fit(make, other, words, tmp_path) -> None:
    get_peft_model(make(), GatedPromptConfig(num_virtual_tokens=2)).save_pretrained(tmp_path)
    base = make(**other)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    with pytest.raises(AdapterMismatchError, match=words):
        PeftModel.from_pretrained(base, tmp_path)
    assert list(base.state_dict()) == list(before)
    assert all(torch.equal(base.state_dict()[k], v) for k, v in before.items())

    loaded = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3))
    with torch.no_grad():
        wanted = loaded.eval()(images()).logits
        with pytest.raises(AdapterMismatchError, match=words.replace("base 5", "base 5")):
            loaded.load_adapter(tmp_path, adapter_name="other")
        assert list(loaded.peft_config) == ["default"]
        assert torch.equal(loaded(images()).logits, wanted)


def test_registers_are_counted() -> None:
    config = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    with_registers = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**config))
    adapted = get_peft_model(transformers.Dinov2Model(transformers.Dinov2Config(**config)), GatedPromptConfig())
    saved = adapted.peft_config["default"]
    assert (saved.num_prefix_tokens, saved.detected_prefix_tokens) == (1, 1)
    with pytest.raises(AdapterMismatchError, match="prefix tokens: adapter 1, base 5"):
        get_peft_model(with_registers, replace(saved))  # as it is read from a file


@pytest.mark.parametrize("make", [vit, dinov2], ids=["vit", "dinov2"])
def test_images_of_the_wrong_size(make) -> None:
    model = get_peft_model(make(), GatedPromptConfig(num_virtual_tokens=2)).eval()
    with torch.no_grad():
        wanted = model(images()).logits
        if make is vit:
            with pytest.raises(ValueError, match=r"Input image size \(40\*40\) doesn't match model \(32\*32\)"):
                model(images(size=40))
        else:
            assert model(images(size=40)).logits.shape == (2, 5)  # DINOv2 interpolates its positions
        with pytest.raises(ValueError, match="channel dimension"):
            model(images()[:, :1])
        assert torch.equal(model(images()).logits, wanted)


def test_every_error_is_a_value_error() -> None:
    import gated_prompt

    errors = [v for v in vars(gated_prompt).values() if isinstance(v, type) and issubclass(v, GatedPromptError)]
    assert len(errors) > 5
    assert all(issubclass(error, ValueError) for error in errors)
