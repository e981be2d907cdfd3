"""The model card of an adapter, without the Hub."""

import math
import os

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from peft import get_peft_model
from PIL import Image
from transformers import ViTImageProcessor

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, model_card, write_card
from helpers.models import build, dinov2, vit


def tuned(base=None, name="default", **settings):
    return get_peft_model(base or vit(), GatedPromptConfig(num_virtual_tokens=3, **settings), adapter_name=name)


def test_card_in_the_form_of_the_hub(tmp_path) -> None:
    model = tuned(insert_at=1, gated_blocks=[1, 3], temperature_init=1.25, pooling="patches")
    card = model_card(
        model,
        base_model="someone/tiny-vit",
        dataset="someone/birds",
        split="test",
        metrics={"accuracy": 0.875},
        labels=["wren", "owl: barn", "a\n| b"],
        license="apache-2.0",
        picture="gates.png",
        notes="## Training\n\nOne run.",
    )
    path = write_card(tmp_path, card)
    loaded = ModelCard.load(path)
    assert loaded.content == card.content
    assert loaded.data.to_dict() == card.data.to_dict()
    assert loaded.data.eval_results == [
        EvalResult("image-classification", "someone/birds", "someone/birds", "accuracy", 0.875, dataset_split="test")
    ]
    metadata = yaml.safe_load(path.read_text().split("---\n")[1])
    del metadata["model-index"]
    assert metadata == {
        "base_model": "someone/tiny-vit",
        "datasets": ["someone/birds"],
        "library_name": "peft",
        "license": "apache-2.0",
        "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["gated-prompt", "visual-prompt-tuning", "base_model:adapter:someone/tiny-vit"],
    }
    ratio = [f"{value:.3f}" for value in gated_prompt.selection_ratios(model).tolist()]
    assert [line for line in card.text.splitlines() if line.startswith("|")] == [
        "| block | gate | selection ratio | temperature |",
        "|---|---|---|---|",
        f"| 1 | 0.006693 | {ratio[0]} | 1.25 |",
        "| 2 | - | - | 1.25 |",
        f"| 3 | 0.006693 | {ratio[1]} | 1.25 |",
    ]
    for part in (
        "**0.8750**",
        "Classes: wren, owl: barn, a | b",
        "](gates.png)",
        "## Training\n\nOne run.",
        "3 tokens, inserted at block 1 of 4, pooling patches",
        "@inproceedings{yoo2023improving",
        'ViTForImageClassification.from_pretrained("someone/tiny-vit", num_labels=5, ignore_mismatched_sizes=True)',
        'PeftModel.from_pretrained(base, "path/or/hub-id/of/this/adapter")',
    ):
        assert part in card.text, part


@pytest.mark.parametrize(
    ("source", "listed", "name"),
    [
        ("someone/tiny-vit", "someone/tiny-vit", "someone/tiny-vit"),
        ("/home/me/models/my vit", None, "my vit"),
        ("../models/vit/", None, "vit"),
        (r"C:\models\vit", None, "vit"),
        ("tiny-vit", None, "tiny-vit"),
        ("some one/vit", None, "vit"),
        ("a--b/vit", None, "vit"),
    ],
)
def test_no_path_in_the_card(source, listed, name) -> None:
    base = vit()
    base.name_or_path = base.config._name_or_path = source
    card = model_card(tuned(base))
    assert card.data.base_model == listed
    assert (f"base_model:adapter:{listed}" in card.data.tags) == (listed is not None)
    assert name in card.text
    for part in ("/home", "..", "C:", "some one", "a--b"):
        assert part not in card.content.replace("...", "")


def test_a_folder_that_looks_like_a_hub_id(tmp_path, monkeypatch) -> None:
    (tmp_path / "models" / "vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_card(tuned(), base_model="models/vit").data.base_model is None
    assert model_card(tuned(), dataset="models/vit").data.datasets is None


def test_each_kind_of_prompt_and_model() -> None:
    deep = model_card(tuned(deep=True, temperature=False))
    assert deep.text.lstrip().startswith("# Deep visual prompts for ")
    assert deep.text.count("| - | - | 1 |") == 4
    assert model_card(tuned(gates=False)).text.lstrip().startswith("# Visual prompts for ")
    headless = model_card(tuned(build("ViTModel", "ViTConfig")))
    assert headless.data.pipeline_tag == "image-feature-extraction"
    assert "num_labels" not in headless.text
    assert model_card(tuned(dinov2())).data.pipeline_tag == "image-classification"
    assert model_card(tuned(), task="image-to-text").data.pipeline_tag == "image-to-text"
    segmenter = tuned()
    type_of_base = type(segmenter.get_base_model())
    segmenter.get_base_model().__class__ = type("MySegmenter", (type_of_base,), {})
    card = model_card(segmenter)
    assert card.data.pipeline_tag == "image-segmentation"
    assert "base = ...  # the MySegmenter that the prompts were trained on" in card.text


def test_the_adapter_that_was_asked_for() -> None:
    model = tuned(name="first")
    model.add_adapter("second", GatedPromptConfig(num_virtual_tokens=7, insert_at=2))
    assert "3 tokens" in model_card(model).text
    second = model_card(model, adapter_name="second").text
    assert "7 tokens, inserted at block 2" in second
    assert "\n| 1 |" not in second
    with pytest.raises(GatedPromptError, match=r"no adapter 'third' here. Choose from: first, second"):
        model_card(model, adapter_name="third")


def test_class_names_come_from_the_base() -> None:
    assert "Classes" not in model_card(tuned(vit(num_labels=2))).text  # LABEL_0, LABEL_1 say nothing
    assert "- Classes: cat, dog" in model_card(tuned(vit(num_labels=2, id2label={1: "dog", 0: "cat"}))).text


def test_the_code_of_a_card_names_the_class_of_a_picture(tmp_path, monkeypatch, capsys) -> None:
    """The block is pasted into a folder with the base, the adapter and a picture, and runs."""
    monkeypatch.chdir(tmp_path)
    base = vit(num_labels=2, id2label={0: "cat", 1: "large dog"})
    base.save_pretrained("vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained("vit")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save("photo.jpg")
    model = tuned(base)
    with torch.no_grad():  # a clear answer: the second class
        model.get_base_model().classifier.modules_to_save["default"].bias.copy_(torch.tensor([-50.0, 50.0]))
    text = model_card(model, base_model="someone/vit", repo_id="me/pets").text
    os.renames("vit", "someone/vit")  # after the card was made, which would see that it is a folder
    model.save_pretrained("me/pets")
    code = text.split("```python\n")[1].split("```")[0]
    try:
        exec(code, {})
    except ImportError as error:
        if "Torchvision" not in str(error):
            raise
        pytest.skip("AutoImageProcessor of this version of transformers needs torchvision")
    assert capsys.readouterr().out == "large dog\n"
    many = model_card(tuned(vit(num_labels=31)), labels=[f"bird {i}" for i in range(31)]).text
    assert "names = " not in many and "- Classes: bird 0, bird 1" in many


def test_refusals(tmp_path) -> None:
    model = tuned()
    with pytest.raises(GatedPromptError, match="metrics accuracy were given without dataset and split"):
        model_card(model, metrics={"accuracy": 0.5})
    with pytest.raises(GatedPromptError, match="metrics accuracy were given without split"):
        model_card(model, dataset="birds", metrics={"accuracy": 0.5})
    for value in (math.nan, math.inf):
        with pytest.raises(GatedPromptError, match=f"finite numbers, not accuracy={value}"):
            model_card(model, dataset="birds", split="test", metrics={"accuracy": value})
    for metrics in ({"accuracy": 91}, {"mean_iou": 45.1}, {"f1": -0.1}):
        with pytest.raises(GatedPromptError, match=f"{next(iter(metrics))}=.*lie between 0 and 1. Divide percentages"):
            model_card(model, dataset="birds", split="test", metrics=metrics)
    assert model_card(model, dataset="birds", split="test", metrics={"mean_absolute_error": 4.2}).data.metrics
    with pytest.raises(GatedPromptError, match=r"not a folder. Save the adapter there first"):
        write_card(tmp_path / "missing", model_card(model))


def test_a_card_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    model = tuned()
    model.save_pretrained(tmp_path)
    template = (tmp_path / "README.md").read_text()
    card = model_card(model)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write_card(tmp_path, card)
    assert (tmp_path / "README.md").read_text() == template
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    write_card(tmp_path, card)
    assert (tmp_path / "README.md").read_text() == card.content
