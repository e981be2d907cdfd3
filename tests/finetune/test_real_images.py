"""train_images.py on real pictures and real backbones, small parts of each."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModel

import gated_prompt.cli.train as train_images
from gated_prompt.finetune.features import kept_features
from gated_prompt.finetune.folder import read_folder
from gated_prompt.finetune.image_set import Pixels
from gated_prompt.heads import read_tokens
from gated_prompt.predictor import Predictor
from gated_prompt.sharing.backbone import preparation
from helpers.data_files import real_data

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

CLASSES = {"forest": 1, "highway": 3, "residential": 7, "sea": 9}


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of EuroSAT as folders, 20 pictures of each to train on and 10 for validation."""
    folder, root = tmp_path_factory.mktemp("eurosat"), real_data("real_vtab", "eurosat")
    for split, part, count in (("train800", "train", 20), ("val200", "validation", 10)):
        rows = [line.split() for line in (root / f"{split}.txt").read_text().splitlines()]
        for name, label in CLASSES.items():
            (folder / part / name).mkdir(parents=True)
            for path, _ in [row for row in rows if int(row[1]) == label][:count]:
                (folder / part / name / Path(path).name).symlink_to(root / path)
    return folder


def test_the_shipped_backbone_on_real_pictures(eurosat: Path, tmp_path: Path) -> None:
    arguments = ["--num_train_epochs", "2", "--num_virtual_tokens", "4", "--learning_rate", "0.003"]
    places = ["--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "features")]
    results = train_images.main(["--train_dir", str(eurosat), *arguments, *places])
    assert results["data"]["train"]["count"] == 80
    probes = [block["linear_probe"] for block in results["blocks"]]
    assert max(probes) > 0.8 and results["blocks"][results["block"]]["linear_probe"] == max(probes)
    probe, gated = results["comparison"]
    chosen = next(row for row in results["comparison"] if row["chosen"])
    assert chosen["measures"]["accuracy"] >= probe["measures"]["accuracy"]
    assert gated["curve"][0]["accuracy"] > 0.7  # the head's start, four classes
    assert json.loads((tmp_path / "run" / "results.json").read_text())["sentence"] == results["sentence"]


def test_features_of_a_block_are_those_of_a_model_that_ends_there(eurosat: Path, tmp_path: Path) -> None:
    """DINOv2's twelve blocks in one pass, against transformers' own model cut after the seventh."""
    backbone = real_data("dinov2_small_saliency")
    data = read_folder(eurosat / "validation").take(range(0, 40, 5))
    pixels = Pixels(data, Predictor(list(data.names), preparation(str(backbone), 56)))
    model = AutoModel.from_pretrained(backbone, dtype="float32")
    found = kept_features(model, pixels, "key", tmp_path, Accelerator(), batch_size=3)
    assert found.num_blocks == 12 and found[6].shape == (8, 2 * 384)
    short = AutoModel.from_pretrained(backbone, dtype="float32", num_hidden_layers=7).eval()
    with torch.no_grad():
        wanted = read_tokens(short(torch.stack([one for one, _ in pixels])).last_hidden_state, 1, "both")
    torch.testing.assert_close(found[6], wanted, atol=1e-4, rtol=1e-4)
    # From now on they are read, not computed: a model without blocks gives the same.
    again = kept_features(torch.nn.Identity(), pixels, "key", tmp_path, Accelerator())
    assert torch.equal(again[6], found[6])
