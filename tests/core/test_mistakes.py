# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Sixty typical mistakes: each message names what was given, what was expected, and what to do."""

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, finetune, heads
from helpers.models import build, images, vit

Mistake = tuple[Callable[[], Any], str, str, str]  # the call, then patterns: what was given, expected, and what to do


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter, damaged copies of it, and folders of images of which some cannot be used."""
    folder = tmp_path_factory.mktemp("world")
    gated_prompt.save(model(), folder / "adapter")
    for copy in ("cut", "no_json", "no_weights"):
        shutil.copytree(folder / "adapter", folder / copy)
    weights = folder / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    (folder / "no_json" / "adapter_config.json").write_text("{")
    (folder / "no_weights" / "adapter_model.safetensors").unlink()
    for place, kind in (("photos", "cat"), ("photos", "dog"), ("one", "cat"), ("flat", ".")):
        (folder / place / kind).mkdir(parents=True, exist_ok=True)
        for index in range(6):
            Image.new("RGB", (20, 20), (40 * index, 9, len(kind))).save(folder / place / kind / f"{index}.png")
    (folder / "empty").mkdir()
    (folder / "table.csv").write_text("image,label\nphotos/cat/0.png,cat\nphotos/dog/0.png,dog\n")
    return folder


@pytest.fixture
def inside(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def config(**settings: Any) -> GatedPromptConfig:
    return GatedPromptConfig(**settings)


def model(**settings: Any) -> PeftModel:
    return get_peft_model(vit(num_labels=4), config(**{"num_virtual_tokens": 3, **settings}))


def two() -> PeftModel:
    pair = model()
    pair.add_adapter("pets", config(num_virtual_tokens=3))
    return pair


def plain() -> torch.nn.Module:
    return build("ViTModel", "ViTConfig", add_pooling_layer=False)


def load(folder: str, **settings: Any) -> PeftModel:
    return gated_prompt.load(vit(**{"num_labels": 4, **settings}), folder)


def resnet() -> torch.nn.Module:
    sizes = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    return transformers.ResNetForImageClassification(sizes)


def swin() -> torch.nn.Module:
    sizes = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4
    )
    return transformers.SwinForImageClassification(sizes)


def train(**options: Any) -> Any:
    return finetune.train(output_dir="runs", **options)


def batch(classes: int) -> list[Any]:
    return [(images(8), torch.arange(8) % classes)]


def lora() -> PeftModel:
    return get_peft_model(vit(), LoraConfig(target_modules="all-linear"))


NAMES = "num_virtual_tokens"
MISTAKES: dict[str, Mistake] = {
    "a number without a name": (
        lambda: GatedPromptConfig(10),
        "10 without a name",
        "Name each setting",
        f"{NAMES}=10",
    ),
    "num_prompts": (lambda: config(num_prompts=9), "'num_prompts'", NAMES, "Did you mean"),
    "LoRA's rank": (lambda: config(r=8), "'r'", NAMES, "Did you mean"),
    "a spelling": (lambda: config(gate_innit=8), "'gate_innit'", "gate_init", "Did you mean"),
    "an unknown setting": (lambda: config(banana=8), "'banana'", "insert_at", "The settings are"),
    "no prompts": (lambda: config(num_virtual_tokens=0), f"{NAMES} is 0", "at least 1", "Expected"),
    "half a prompt": (lambda: config(num_virtual_tokens=10.5), "is 10.5", "an integer", "Expected"),
    "prompts as text": (lambda: config(num_virtual_tokens="10"), "is '10'", "an integer", "Expected"),
    "a task of PEFT": (lambda: config(task_type="SEQ_CLS"), "'SEQ_CLS'", "language models", "Use None"),
    "a task of nobody": (lambda: config(task_type="IMAGE_CLS"), "'IMAGE_CLS'", "language models", "Use None"),
    "insert_at -1": (lambda: config(insert_at=-1), "insert_at is -1", "0 or more", "Leave it out"),
    "reads below": (
        lambda: config(insert_at=3, read_from=2),
        "read_from is 2",
        "at least insert_at=3",
        "Expected at least",
    ),
    "all dropped": (lambda: config(prompt_dropout=1.0), "is 1.0", r"\[0, 1\)", "Expected a number in"),
    "pooling": (lambda: config(pooling="mean"), "'mean'", "'prompts', 'patches'", "Expected None"),
    "zero start alone": (lambda: config(zero_start=True), "zero_start=True", "its own prompts", "needs deep=True"),
    "zero start, pooled": (
        lambda: config(zero_start=True, deep=True, pooling="prompts"),
        "pooling='prompts'",
        "never become output",
        "Use pooling='patches'",
    ),
    "gate nan": (lambda: config(gate_init=float("nan")), "gate_init is nan", "finite logit", "-20 closes"),
    "hard gates": (
        lambda: config(hard_gates=True, deep=True),
        "hard_gates=True",
        "needs gates",
        "Leave hard_gates out",
    ),
    "deep and gated": (lambda: config(deep=True, gated_blocks=[1]), "deep=True", "no gates", "Leave one"),
    "gates off": (lambda: config(gates=False, gated_blocks=[1]), "gates=False", "contradicts", "Leave one"),
    "no gated block": (lambda: config(gated_blocks=[]), "is empty", "without gates", "Use gates=False"),
    "unordered": (lambda: config(gated_blocks=[2, 1]), r"\[2, 1\]", "ascending", "List each block once"),
    "gated below": (lambda: config(insert_at=2, gated_blocks=[1]), r"\[1\]", "insert_at=2", "List others"),
    "gated above": (lambda: config(read_from=1, gated_blocks=[2]), r"\[2\]", "read_from=1", "List others"),
    "range": (lambda: config(temperature_range=(2, 1)), r"\(2, 1\)", "0 < low < high", "Expected"),
    "outside": (lambda: config(temperature_init=20.0), "is 20.0", r"\(0.01, 10.0\)", "Give one inside"),
    "prefix": (lambda: config(num_prefix_tokens=-1), "is -1", "0 or more", "Leave it out"),
    "one head twice": (lambda: config(modules_to_save=["a", "a"]), r"\['a', 'a'\]", "once", "Name each module"),
    "inserts beyond": (lambda: model(insert_at=99), "insert_at is 99", "last block .* is 3", "Give a lower"),
    "reads beyond": (lambda: model(read_from=99), "read_from is 99", "last block .* is 3", "Give a lower"),
    "gated beyond": (lambda: model(gated_blocks=[99]), r"\[99\]", "last block, 3", "List lower"),
    "another head": (lambda: model(modules_to_save=["head"]), "'head'", "does not have", "Name one of its modules"),
    "ResNet": (lambda: get_peft_model(resnet(), config()), "ResNet", "transformer blocks", "need a plain"),
    "Swin": (lambda: get_peft_model(swin(), config()), "Swin", "hierarchical", "Use a plain"),
    "twice": (lambda: get_peft_model(model().base_model.model, config()), "already carries", "default", "add_adapter"),
    "merge": (lambda: model().merge_and_unload(), "cannot be merged", "extra tokens", r"call unload\(\)"),
    "both": (lambda: two().base_model.set_adapter(["default", "pets"]), r"\['default', 'pets'\]", "one", "Activate"),
    "mean of two": (
        lambda: two().base_model.add_weighted_adapter(["default", "pets"], [1, 1], "c"),
        "add_weighted_adapter",
        "do not correspond",
        "Keep both",
    ),
    "dots": (lambda: model().add_adapter("a.b", config()), "'a.b'", "without dots", "Choose another"),
    "a name nobody has": (lambda: gated_prompt.gates(model(), "birds"), "'birds'", "default", "Choose from"),
    "no such task": (lambda: model().eval()(images(1), adapter_names=["x"]), "'x'", "default", "Choose from"),
    "too few names": (
        lambda: model().eval()(images(2), adapter_names=["default"]),
        "1 names for a batch of 2",
        "batch of 2",
        "Give one name per image",
    ),
    "mixed training": (
        lambda: model().train()(images(1), adapter_names=["default"]),
        "adapter_names",
        "inference",
        r"Call model.eval\(\)",
    ),
    "no adapter": (lambda: gated_prompt.gates(vit()), "no gated prompts", "get_peft_model", "Wrap it"),
    "no folder": (lambda: load("nothing"), "'nothing'", "adapter_config.json", "Check the path"),
    "half a file": (lambda: load("cut"), "cut/", "readable safetensors", "download the adapter again"),
    "half a config": (lambda: load("no_json"), "no_json", "valid JSON", "download the adapter again"),
    "no weights": (lambda: load("no_weights"), "no_weights", "adapter_model.safetensors", "Copy or download"),
    "another depth": (lambda: load("adapter", num_hidden_layers=2), "adapter 4", "base 2", "Load it on the base"),
    "other classes": (lambda: load("adapter", num_labels=7), r"\(7, 32\)", r"\(4, 32\)", "adapter's num_labels"),
    "no head": (lambda: gated_prompt.load(plain(), "adapter"), "ViTModel", "'classifier'", "ForImageClassification"),
    "name in use": (
        lambda: gated_prompt.load(model(), "adapter", adapter_name="default"),
        "'default'",
        "another adapter_name",
        "delete_adapter",
    ),
    "saves LoRA": (lambda: gated_prompt.save(lora(), "out"), "PeftModel", "GatedPromptConfig", "Wrap it"),
    "a start": (
        lambda: gated_prompt.initialize_prompts(model(), batch(4), method="rand"),
        "'rand'",
        "'sample', 'mean'",
        "Choose from",
    ),
    "no images": (lambda: gated_prompt.initialize_prompts(model(), [], method="mean"), "0 tokens", "3", "Give more"),
    "one class": (lambda: gated_prompt.initialize_head(model(), batch(1)), "class 0", "two classes", "Expected"),
    "too many classes": (lambda: gated_prompt.initialize_head(model(), batch(8)), "0 to 7", "0 to 3", "needs"),
    "no batch": (lambda: gated_prompt.initialize_head(model(), []), "no batches", "labelled images", "Give"),
    "reads": (
        lambda: heads.TokenClassifier(plain(), 3, "all"),
        r"TokenClassifier (.|\n)*'all'",
        "cls, mean",
        "one of",
    ),
    "blocks": (lambda: heads.TokenClassifier(plain(), 3, "cls", [9]), r"\[9\]", "0 to 3", "Expected"),
    "removed": (lambda: gated_prompt.fold_temperatures, "fold_temperatures", "was removed", "Leave the call out"),
    "no classes": (lambda: gated_prompt.load_classifier("adapter"), "adapter", "predictor.json", "Write it with"),
    "an option": (lambda: train(train_dirs="photos"), "--train_dirs", "--train_dir", "Did you mean"),
    "no data": (train, "not none", "--train_dir", "give one"),
    "no such folder": (lambda: train(train_dir="fotos"), "'fotos'", "subfolder for each class", "Give one"),
    "an empty folder": (lambda: train(train_dir="empty"), "empty has 0", "Expected at least two", "empty/cat/001.jpg"),
    "a single class": (lambda: train(train_dir="one"), "one has 1", "Expected at least two", "one/dog/001.jpg"),
    "no subfolders": (lambda: train(train_dir="flat"), "flat has 0", "Expected at least two", "flat/cat/001.jpg"),
    "a backbone": (lambda: train(train_dir="photos", backbone="me/none"), "'me/none'", "Hub id", "Give a folder"),
    "a method": (lambda: train(train_dir="photos", methods=["prefix"]), "'prefix'", "'zero_start'", "choose from"),
    "a block": (lambda: train(train_dir="photos", read_block="99"), "'99'", "0 to 11", "Choose from"),
    "a size": (lambda: train(train_dir="photos", image_size="big"), "'big'", "int", "--help"),
    "a column": (lambda: train(train_file="table.csv", label_column=["x"]), "'x'", "image, label", "Name yours"),
    "no shots": (lambda: train(train_dir="photos", shots=0), "--shots 0", "at least 1", "needed"),
}


def test_there_are_sixty() -> None:
    assert len(MISTAKES) >= 60


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("inside")
def test_the_message_helps(mistake: Mistake) -> None:
    call, *parts = mistake
    with pytest.raises(GatedPromptError) as raised:
        call()
    missing = [part for part in parts if not re.search(part, str(raised.value))]
    assert not missing, f"{raised.value} lacks {missing}"


@pytest.mark.parametrize(("value", "warns"), [(5, True), (1.0, True), (-5, False), (0.5, False)])
def test_the_papers_table_value_is_told_from_a_logit(value: float, warns: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config(gate_init=value)
    assert [f"means gate_init={-value:g} here" in str(one.message) for one in caught] == [True] * warns
    if warns:
        assert caught[0].filename == __file__
