"""Fixtures that several test files use."""

from pathlib import Path

import pytest
from models import vit
from transformers import ViTImageProcessor


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random ViT with an image processor, as a user would have it on disk."""
    folder = tmp_path_factory.mktemp("backbone")
    vit(num_labels=10).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
