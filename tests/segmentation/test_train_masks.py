"""`gated-prompt train` on label maps, end to end on a tiny ViT: what it leaves, resuming, formats, processes."""

import json
from pathlib import Path

import pytest

from gated_prompt.finetune.segmentation import command
from gated_prompt.segmentation.predictor import read_mask_predictor
from helpers.accelerate_state import fresh
from helpers.shapes import save

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
QUICK = ["--num_train_epochs", "2", "--num_virtual_tokens", "3", "--image_size", "48"]


def run(backbone: Path, data: Path, output: Path, *more: str) -> dict:
    place = ["--output_dir", str(output), "--cache_dir", str(output.parent / "features")]
    return command.main(["--train_dir", str(data), "--backbone", str(backbone), *QUICK, *place, *more])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def done(backbone: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of prompts and LoRA, with a test part."""
    output = tmp_path_factory.mktemp("runs") / "shapes"
    run(backbone, shapes, output, "--test_dir", str(shapes), "--methods", "zero_start", "gated", "lora", "conv")
    fresh()
    return output


def test_what_a_run_leaves(done: Path) -> None:
    results = json.loads((done / "results.json").read_text())
    names = [row["name"] for row in results["comparison"]]
    assert names == ["frozen, linear map", "zero_start, seed 0", "gated, seed 0", "lora, seed 0", "conv, seed 0"]
    assert results["sentence"].startswith("Use ") and sum(row["chosen"] for row in results["comparison"]) == 1
    assert [results["data"][part]["count"] for part in ("train", "validation", "test")] == [8, 2, 10]
    assert results["test"]["mean_iou"] > 0.4
    assert read_mask_predictor(done / results["use"]).names == ["ground", "disc", "box"]
    page = (done / "report.html").read_text()
    assert page.count("<figure>") == 2 and "Which classes are confused" in page
