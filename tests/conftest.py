"""Fixtures that several test files use."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import get_peft_model
from transformers import ViTImageProcessor

from gated_prompt import GatedPromptConfig
from helpers.models import vit


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random ViT with an image processor, as a user would have it on disk."""
    folder = tmp_path_factory.mktemp("backbone")
    vit(num_labels=10).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Let each test begin without the accelerator of the one before."""
    yield
    from helpers.accelerate_state import fresh  # here: most test files do without accelerate

    fresh()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a fresh adapter for `models.vit()`; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3)).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return shutil.copytree(saved, tmp_path / "adapter")
