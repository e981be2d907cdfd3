"""The pre-training script: position embeddings, resuming to the same encoder, loading the encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ViTImageProcessor

from backbones import pretrain_mae
from helpers.accelerate_state import fresh
from helpers.interrupted import stopped_after

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SMALL = [
    "--hidden_size",
    "16",
    "--num_hidden_layers",
    "2",
    "--num_attention_heads",
    "2",
    "--decoder_hidden_size",
    "12",
]
SMALL += ["--per_device_train_batch_size", "8", "--num_train_epochs", "3", "--warmup_epochs", "1"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (20, 40, 36, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder.parent


def run(pictures: Path, output: Path) -> None:
    pretrain_mae.main(["--dataset", str(pictures), "--output_dir", str(output), *SMALL])


def test_resumed_ends_with_the_same_encoder(pictures, tmp_path) -> None:
    run(pictures, tmp_path / "straight")
    fresh()
    stopped_after("step_00000004", lambda: run(pictures, tmp_path / "killed"))  # two epochs of two steps
    run(pictures, tmp_path / "killed")
    one, other = ((tmp_path / n / "encoder" / "model.safetensors").read_bytes() for n in ("straight", "killed"))
    assert one == other
    losses = [[json.loads(row)["loss"] for row in (tmp_path / n / "log.jsonl").open()] for n in ("straight", "killed")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert (tmp_path / "straight" / "loss.png").stat().st_size > 1000


def test_the_encoder_loads_as_a_vit(pictures, tmp_path) -> None:
    run(pictures, tmp_path / "run")
    encoder = tmp_path / "run" / "encoder"
    model = AutoModelForImageClassification.from_pretrained(encoder, num_labels=3, dtype="float32").eval()
    pixels = ViTImageProcessor.from_pretrained(encoder)(Image.new("RGB", (50, 40)), return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, 3, 32, 32)
    assert model(**pixels).logits.shape == (1, 3)
    positions = model.vit.embeddings.position_embeddings[0]
    torch.testing.assert_close(positions, pretrain_mae.sine_positions(16, 8)[0], atol=1e-3, rtol=0)


def test_positions_are_the_papers_sines() -> None:
    positions = pretrain_mae.sine_positions(8, 4)[0]
    assert positions.shape == (17, 8)
    assert positions[0].tolist() == [0.0] * 8  # CLS
    row, column = 2, 3
    angles = [column, column / 100, row, row / 100]  # w = 1 and 10000^(-1/2), column before row
    wanted = [np.sin(angles[:2]), np.cos(angles[:2]), np.sin(angles[2:]), np.cos(angles[2:])]
    np.testing.assert_allclose(positions[1 + row * 4 + column], np.concatenate(wanted), atol=1e-6)


def test_a_new_model_knows_where_its_patches_are() -> None:
    """transformers 5 leaves these embeddings at zero, and such a model learns nothing from its context."""
    model = pretrain_mae.build_model(
        pretrain_mae.Arguments(hidden_size=16, num_attention_heads=2, num_hidden_layers=2)
    )
    for embeddings in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert len(torch.unique(embeddings[0], dim=0)) == 65
    assert model.decoder.mask_token.abs().max() > 0


def test_augmentation_keeps_shape_and_range() -> None:
    torch.manual_seed(0)
    images = torch.full((6, 3, 32, 32), 128, dtype=torch.uint8)
    pixels = pretrain_mae.augment(images, 0.4)
    wanted = (128 / 255 - torch.tensor(pretrain_mae.IMAGENET_MEAN)) / torch.tensor(pretrain_mae.IMAGENET_STD)
    torch.testing.assert_close(pixels, wanted.view(1, 3, 1, 1).expand_as(pixels), atol=1e-5, rtol=0)
    ramp = torch.arange(32, dtype=torch.uint8).expand(64, 3, 32, 32)
    slopes = (pretrain_mae.augment(ramp, 0.4).diff(dim=-1).mean((1, 2, 3)) * 255 * 0.226).tolist()
    assert min(slopes) < -0.5 < 0.5 < max(slopes)  # some are flipped
    assert max(slopes) < 1.05  # a crop stretches, and never shrinks
