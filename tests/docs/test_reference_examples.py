# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Every function and class of the reference has an example in its docstring, and the examples run on tiny models.

An example finds the names of `names_of_examples` and the folders of `world`. What needs the network, an original
checkpoint or minutes is replaced by a stand-in that checks its arguments.
"""

import importlib
import inspect
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import matplotlib as mpl
import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image

import gated_prompt
import gated_prompt.convert
import gated_prompt.engine.export
import gated_prompt.engine.pool
import gated_prompt.engine.run
import gated_prompt.finetune
from gated_prompt import GatedPromptConfig
from gated_prompt.predictor import Predictor
from helpers.models import build, images, vit
from helpers.pages import PAGES

mpl.use("Agg")
from matplotlib import pyplot as plt

# Results of other entries, whose examples show them, and what only describes an interface.
SHOWN_ELSEWHERE = {
    "gated_prompt.Classifier",
    "gated_prompt.GatedPromptModel",
    "gated_prompt.Pruning",
    "gated_prompt.finetune.BlockProbes",
    "gated_prompt.finetune.TrainResult",
    "gated_prompt.plots.PromptAttention",
    "gated_prompt.plots.Recording",
    "gated_prompt.serving.resident.Resident",
}
STAND_INS = [
    (gated_prompt, "push_to_hub"),
    (gated_prompt, "export_engine"),  # docs/export.md runs it
    (gated_prompt.engine.export, "add_adapter"),
    (gated_prompt.engine.run, "Engine"),
    (gated_prompt.engine.pool, "EnginePool"),
    (gated_prompt.convert, "convert_backbone"),
    (gated_prompt.convert, "convert_adapter"),
    (gated_prompt.finetune, "train"),
    (gated_prompt.finetune, "probe_blocks"),
]
ENTRIES = re.findall(r"^\.\. auto(?:function|class):: (\S+)", PAGES["reference.md"].read_text(), re.MULTILINE)
CROP = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": 32, "crop": 32}


def examples(entry: str) -> list[str]:
    """The code in the docstring of an entry."""
    module, _, name = entry.rpartition(".")
    text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    return [inspect.cleandoc(code) for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone and two adapters on it, with what it takes to classify with them, and an image."""
    folder = tmp_path_factory.mktemp("world")
    vit(num_labels=0).save_pretrained(folder / "backbone")
    for place, names in (
        ("me/birds", ["wren", "robin"]),
        ("me/cars", ["van", "bus", "car"]),
        ("runs/photos", ["cat"]),
    ):
        base = vit(num_labels=len(names))
        base.load_state_dict(vit(num_labels=0).state_dict(), strict=False)
        adapter = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2))
        gated_prompt.save(adapter, folder / place)
        Predictor(names, CROP, backbone=str(folder / "backbone"), reads="cls").write(folder / place)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "new.jpg")
    return folder


def names_of_examples(world: Path) -> dict[str, Any]:
    base = vit(num_labels=2)
    return {
        "gated_prompt": gated_prompt,
        "GatedPromptConfig": GatedPromptConfig,
        "get_peft_model": get_peft_model,
        "torch": torch,
        "vit": base,
        "model": get_peft_model(vit(num_labels=2), GatedPromptConfig(num_virtual_tokens=2)),
        "backbone": build("ViTModel", "ViTConfig", add_pooling_layer=False),
        "pixel_values": images(2),
        "train_loader": [(images(24), torch.arange(24) % 2)],
        "image": Image.open(world / "new.jpg"),
    }


@pytest.mark.parametrize("entry", [one for one in ENTRIES if one not in SHOWN_ELSEWHERE])
@pytest.mark.filterwarnings("ignore")
def test_the_example_runs(entry: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examples(entry)
    assert found, f"the docstring of {entry} has no example"
    for thing in world.iterdir():
        (tmp_path / thing.name).symlink_to(thing)
    monkeypatch.chdir(tmp_path)
    for module, name in STAND_INS:
        monkeypatch.setattr(module, name, create_autospec(getattr(module, name)))
    with redirect_stdout(io.StringIO()):
        for code in found:
            exec(compile(code, f"the example of {entry}", "exec"), names_of_examples(world))
    plt.close("all")


def test_the_exceptions_are_still_entries() -> None:
    assert set(ENTRIES) >= SHOWN_ELSEWHERE
