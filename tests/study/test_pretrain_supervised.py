"""The supervised pre-training script: it learns, a resumed run ends with the same encoder, transformers loads it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, ViTImageProcessor

from backbones import pretrain_supervised
from helpers.accelerate_state import fresh
from helpers.interrupted import stopped_after

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Dark and bright images, eight of each."""
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 200)):
        folder = tmp_path / "pictures" / "train" / label
        folder.mkdir(parents=True)
        for i, pixels in enumerate(rng.integers(low, low + 50, (8, 32, 32, 3), dtype=np.uint8)):
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def train(pictures: Path, backbone: Path, output: Path) -> None:
    command = ["--dataset", str(pictures), "--start_from", str(backbone), "--output_dir", str(output)]
    pretrain_supervised.main([*command, "--per_device_train_batch_size", "8", "--warmup_steps", "1"])


def test_resumed_ends_with_the_same_encoder(pictures, backbone, tmp_path) -> None:
    train(pictures, backbone, tmp_path / "straight")
    fresh()
    stopped_after("step_00000004", lambda: train(pictures, backbone, tmp_path / "killed"))  # two epochs of two steps
    train(pictures, backbone, tmp_path / "killed")

    straight, resumed, start = (
        AutoModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
        for folder in (tmp_path / "straight" / "encoder", tmp_path / "killed" / "encoder", backbone)
    )
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert not any(torch.equal(straight[name].float(), start[name].float()) for name in straight if "weight" in name)
    losses = [json.loads(row)["loss"] for row in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    assert losses == [json.loads(row)["loss"] for row in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert ViTImageProcessor.from_pretrained(tmp_path / "straight" / "encoder").size["height"] == 32
