# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`quiet_loading`: what is expected of a backbone's weights is not reported, and everything else is."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

from gated_prompt.sharing.backbone import is_news, quiet_loading

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ViTForImageClassification(ViTConfig(**SIZES, num_hidden_layers=3)).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the logger of transformers' models lets through, from a script that called `quiet_loading`."""
    logger = logging.getLogger("transformers.modeling_utils")
    found: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "handlers", [Ear()])
    level = logger.level
    logger.setLevel(logging.WARNING)  # whatever the tests before set for all of transformers
    quiet_loading()
    quiet_loading()  # as often as a process calls it
    assert len(logger.filters) == 1
    yield found
    logger.setLevel(level)


def test_new_heads_other_classes_and_left_out_blocks_are_not_reported(folder: Path, heard: list[str]) -> None:
    AutoModelForImageClassification.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True)
    AutoModel.from_pretrained(folder, num_hidden_layers=2)  # without head, with a pooler that is new
    ViTModel(ViTConfig(**SIZES, num_hidden_layers=3)).save_pretrained(folder)
    AutoModelForImageClassification.from_pretrained(folder, num_hidden_layers=1)
    assert heard == []


def test_the_same_reports_would_be_heard_without_it(folder: Path, heard: list[str]) -> None:
    logging.getLogger("transformers.modeling_utils").filters.clear()
    AutoModelForImageClassification.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True)
    AutoModel.from_pretrained(folder, num_hidden_layers=2, add_pooling_layer=False)
    assert len(heard) == 2


def test_a_backbone_that_lacks_weights_is_reported(folder: Path, heard: list[str]) -> None:
    """Three blocks of four are in the file, beside a head that is expected to be new."""
    AutoModelForImageClassification.from_pretrained(
        folder, num_hidden_layers=4, num_labels=7, ignore_mismatched_sizes=True
    )
    assert any(re.search(r"layers?\.3\.", text) for text in heard)


def test_weights_of_a_running_block_that_find_no_place_are_reported(folder: Path, heard: list[str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if ".0." in key and key.endswith("weight"))
    tensors[name.replace("weight", "gamma")] = tensors[name].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    AutoModelForImageClassification.from_pretrained(folder)
    assert len(heard) == 1 and "gamma" in heard[0]


START = (
    "Some weights of ViTForImageClassification were not initialized from the model checkpoint at a/b and are newly "
)
UNUSED = "Some weights of the model checkpoint at a/b were not used when initializing ViTModel: "


@pytest.mark.parametrize(
    ("text", "news"),
    [
        (START + "initialized: ['classifier.bias', 'classifier.weight']\nYou should probably TRAIN", False),
        (START + "initialized: ['classifier.bias', 'vit.encoder.layer.1.norm.weight']\nYou should", True),
        (START + "initialized because the shapes did not match:\n- classifier.weight: found shape (2,) in", False),
        (START + "initialized because the shapes did not match:\n- vit.embeddings.cls_token: found shape (2,)", True),
        (UNUSED + "['classifier.bias', 'vit.encoder.layer.11.norm.weight']\n- This IS expected", False),
        (UNUSED + "['vit.encoder.layer.0.gamma']\n- This IS expected", True),
        ("ViTModel LOAD REPORT from: a/b\n a table of another form", True),
        ("any other message", True),
    ],
)
def test_the_messages_of_transformers_4(text: str, news: bool) -> None:
    assert is_news(logging.makeLogRecord({"msg": text})) is news


def test_what_is_said_about_torchvision_is_dropped() -> None:
    quiet_loading()
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    for text, news in (("torchvision is not installed. Skipping nms", False), ("cannot register x", True)):
        record = logger.makeRecord(logger.name, logging.WARNING, "", 0, text, (), None)
        assert bool(logger.filter(record)) is news
