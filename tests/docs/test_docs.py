# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The code on the pages runs.

The Python blocks of a page run in order, in one namespace, in a folder where the models that they name are tiny
random ones: `from_pretrained("facebook/dinov2-base")` finds the folder facebook/dinov2-base and asks no Hub.
"""

import importlib
import io
import shutil
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import matplotlib as mpl
import numpy as np
import pytest
import sklearn.datasets
import torch
import transformers
from peft import get_peft_model
from PIL import Image
from transformers import ViTImageProcessor

import gated_prompt
import gated_prompt.data
from gated_prompt import GatedPromptConfig
from gated_prompt.images import LabelledImages, Provenance
from helpers.models import build, images, vit
from helpers.pages import PAGES, ROOT, blocks, pages
from helpers.timm_like import TimmLikeViT

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZE = 224  # as the pages have it; patches of 56 keep it quick
Setup = Callable[[dict[str, Any], pytest.MonkeyPatch], None]


# What the pages find in their folder.


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbones, adapters and images by the names that the pages give them."""
    folder = tmp_path_factory.mktemp("world")
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    dinov2 = {"image_size": SIZE, "patch_size": SIZE // 4, "num_labels": 10}
    for name in ("dinov2-base", "dinov2-small"):
        backbone = folder / "facebook" / name
        build("Dinov2Model", "Dinov2Config", **dinov2).save_pretrained(backbone)
        processor.save_pretrained(backbone)
    for name, labels in (("dinov2-birds", 10), ("dinov2-pets", 10), ("dinov2-roofs", 10), ("photos", 2)):
        base = build("Dinov2ForImageClassification", "Dinov2Config", **{**dinov2, "num_labels": labels})
        adapter = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=4))
        adapter.save_pretrained(folder / "me" / name)
    for part in ("train", "validation"):
        for number, kind in enumerate(("cat", "dog")):
            place = folder / "photos" / part / kind
            place.mkdir(parents=True)
            for index in range(4):
                picture(10 * number + index).save(place / f"{index + (1 if part == 'train' else 101):03d}.jpg")
    picture(0).save(folder / "bird.jpg")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "gated_prompt").mkdir()
    (folder / "gated_prompt" / "backbones").symlink_to(ROOT / "gated_prompt" / "backbones")
    return folder


@pytest.fixture
def place(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh working folder with everything of the world in it; what a page writes stays in there."""
    for entry in world.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    start = transformers.TrainingArguments.__init__

    def short(self: Any, *args: Any, **kwargs: Any) -> None:
        """Two steps show that a training loop runs; a machine with a GPU gives the same."""
        start(self, *args, **{**kwargs, "max_steps": 2, "use_cpu": True, "disable_tqdm": True})

    monkeypatch.setattr(transformers.TrainingArguments, "__init__", short)
    yield tmp_path
    plt.close("all")


class Pictures:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Image.Image:
        return picture(index)

    def name(self, index: int) -> str:
        return f"picture {index}"


def labelled(*args: Any, **kwargs: Any) -> LabelledImages:
    """Three images in the place of a data set that is not here."""
    note = Provenance("toy", "train", "made here", None, True, "", 3, 3)
    return LabelledImages(Pictures(), [0, 1, 0], num_classes=2, class_names=["a", "b"], provenance=note)


def masks(*args: Any, **kwargs: Any) -> Any:
    return [(picture(0), Image.new("L", (50, 40)))]


# What a page takes for granted, or what cannot be had without the network.


def with_a_model(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    names["model"] = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2))


def adapters(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Pushing goes nowhere, but its arguments are checked. An adapter lies where training left it."""
    shutil.copytree("me/photos", "runs/photos/adapter")
    patch.setattr(gated_prompt, "push_to_hub", create_autospec(gated_prompt.push_to_hub))


def readme(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    loader = [(images(24, size=SIZE), torch.arange(24) % 4)]
    names.update(pixel_values=images(3, size=SIZE), train_loader=loader)


def data(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Loaders return three images; their arguments are checked."""
    loaders = {"vtab": labelled, "fgvc": labelled, "ade20k": masks}
    for module_name, answer in loaders.items():
        module = importlib.import_module(f"gated_prompt.data.{module_name}")
        for loader in (n for n in dir(module) if n.startswith("load_")):
            patch.setattr(module, loader, create_autospec(getattr(module, loader), side_effect=answer))


def families(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Tiny towers of CLIP and SigLIP by their usual names. timm needs torchvision: a model of its layout stands in."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    clip = transformers.CLIPConfig(text_config={**sizes, "vocab_size": 99}, vision_config=vision)
    transformers.CLIPModel(clip).save_pretrained("openai/clip-vit-base-patch16")
    siglip = transformers.SiglipConfig(text_config={**sizes, "vocab_size": 99}, vision_config=vision)
    transformers.SiglipModel(siglip).save_pretrained("google/siglip-base-patch16-224")
    names.update(pixel_values=images(8), sentences=torch.randint(3, 99, (5, 7)))
    stand_in, other = (TimmLikeViT(depth=2, width=32, image_size=32, patch_size=8, labels=10) for _ in range(2))
    patch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=lambda *args, **kwargs: stand_in))
    auto = transformers.AutoModelForImageClassification
    load = auto.from_pretrained
    patch.setattr(auto, "from_pretrained", lambda name, **more: other if "timm/" in name else load(name, **more))


def quickstart(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """All training images, but only the first 20 of the test."""
    digits = sklearn.datasets.load_digits()
    digits.images, digits.target = digits.images[:1020], digits.target[:1020]
    patch.setattr(sklearn.datasets, "load_digits", lambda: digits)


def convert(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """What `gated-prompt convert` would have written: backbones with and without a head, an adapter."""
    for folder in ("mae-vit-b", "base"):
        build("ViTModel", "ViTConfig", add_pooling_layer=False).save_pretrained(folder)
    vit(num_labels=10).save_pretrained("moco-vit-b")
    adapter = get_peft_model(vit(num_labels=200), GatedPromptConfig(num_virtual_tokens=4))
    adapter.save_pretrained("adapter")


def settings(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    names.update(get_peft_model=get_peft_model, vit=vit(), train_loader=[(images(24), torch.arange(24) % 5)])


def method(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    with_a_model(names, patch)
    used = ("parameter_groups", "AveragedAdapter", "GateRecorder")
    names.update(
        {name: getattr(gated_prompt, name) for name in used}, torch=torch, gated_prompt=gated_prompt, loader=[0]
    )


def segmentation(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """A backbone of 12 blocks, of which the page reads several, and an adapter for it."""
    from gated_prompt.segmentation.predictor import MaskPredictor

    twelve_blocks()
    sides = {"mean": [0.5] * 3, "std": [0.5] * 3, "short_side": SIZE, "window": 2 * SIZE}
    predictor = MaskPredictor(["road", "car"], sides, [5, 11], backbone="facebook/dinov2-base")
    get_peft_model(predictor.load_base(), GatedPromptConfig(num_virtual_tokens=4)).save_pretrained(
        "runs/street/adapter"
    )
    predictor.write("runs/street/adapter")
    Image.new("RGB", (SIZE, SIZE + 9)).save("photo.jpg")


def reproducing(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """An adapter below the heads of the paper's benchmark."""
    from paper.segmentation.setr import SetrPupForSemanticSegmentation

    twelve_blocks()
    base = SetrPupForSemanticSegmentation("facebook/dinov2-base", num_classes=150, auxiliary_blocks=[5, 9])
    get_peft_model(base, GatedPromptConfig(num_virtual_tokens=4)).save_pretrained("runs/ade20k/adapter")
    names["pixels"] = images(1, size=SIZE)[0]


def twelve_blocks() -> None:
    Path("facebook").unlink()
    backbone = build("Dinov2Model", "Dinov2Config", num_hidden_layers=12, image_size=SIZE, patch_size=SIZE // 4)
    backbone.save_pretrained("facebook/dinov2-base")


def export(names: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    for library in ("onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} is not installed; the extra [test] has it")


SETUPS: dict[str, Setup] = {
    "README.md": readme,
    "adapters.md": adapters,
    "convert.md": convert,
    "data.md": data,
    "export.md": export,
    "families.md": families,
    "method.md": method,
    "quickstart.md": quickstart,
    "reproducing.md": reproducing,
    "segmentation.md": segmentation,
    "settings.md": settings,
    "vtab.md": data,
}


@pages
def test_python_blocks_run(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(name, "python")
    if not found:
        pytest.skip("no Python on this page")
    names: dict[str, Any] = {"__name__": "page"}
    SETUPS.get(name, lambda names, patch: None)(names, monkeypatch)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        for line, code in found:
            padded = "\n" * line + code  # so that a traceback has the page's own line numbers
            try:
                exec(compile(padded, PAGES[name], "exec"), names)
            except ImportError as error:
                if "Torchvision" not in str(error):
                    raise
                pytest.skip("AutoImageProcessor of this version of transformers needs torchvision")


def test_the_readme_prints_what_it_shows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    readme(names, monkeypatch)
    with redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        for _, code in blocks("README.md", "python"):
            exec(code, names)
    assert printed.getvalue().endswith(blocks("README.md", "text")[-1][1])


def test_the_quickstart_counts_right(place: Path) -> None:
    names: dict[str, Any] = {"__name__": "page", "torch": torch}
    names["vit"] = transformers.AutoModelForImageClassification.from_pretrained(
        "gated_prompt/backbones/mae-cifar10-tiny", num_labels=10, dtype=torch.float32
    )
    with redirect_stdout(io.StringIO()) as printed:
        exec(blocks("quickstart.md", "python")[1][1], names)
    assert "trainable params: 2,593" in printed.getvalue()
    assert "2,593 parameters are trainable" in PAGES["quickstart.md"].read_text()
