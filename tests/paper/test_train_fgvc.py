"""The fine-grained script end to end on made images: splits, augmentation, resuming, the files it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

import train_fgvc
from gated_prompt import GatedPromptConfig
from gated_prompt.errors import DataError
from gated_prompt.images import InexactDataWarning
from gated_prompt.transforms import TransformedImages
from helpers.accelerate_state import fresh
from helpers.interrupted import stopped_after_steps
from paper import tasks

pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::gated_prompt.images.InexactDataWarning"),
]
QUICK = ["--num_train_epochs", "2", "--warmup_epochs", "1", "--num_virtual_tokens", "3", "--gate_init", "-1"]


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VPT's layout of the 102 Flowers with one image a class to train on, two to validate and one to test in all."""
    folder = tmp_path_factory.mktemp("flowers")
    (folder / "jpg").mkdir()
    draw = np.random.default_rng(0)
    for split, labels in {"train": range(102), "val": (0, 3), "test": (0, 1, 2)}.items():
        entries = {}
        for i, label in enumerate(labels):
            name = f"jpg/{split}_{i:03d}.jpg"
            Image.fromarray(draw.integers(0, 256, (50, 40 + i % 3, 3), dtype=np.uint8)).save(folder / name)
            entries[name] = label + 1
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return folder


def run(backbone: Path, flowers: Path, output: Path, *more: str) -> dict:
    arguments = ["--task", "flowers", "--data_dir", str(flowers), "--backbone", str(backbone), *QUICK]
    return train_fgvc.main([*arguments, "--output_dir", str(output), *more])


def adapter_bytes(output: Path) -> bytes:
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


def test_what_a_run_leaves_behind(backbone: Path, flowers: Path, tmp_path: Path) -> None:
    with pytest.warns(InexactDataWarning, match=r"train.json lists 102 images, expected 1020"):
        results = run(backbone, flowers, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (results["num_train"], results["num_eval"], results["steps"]) == (102, 3, 4)  # batches of 64
    assert [part["split"] for part in results["data"]] == ["train", "test"]
    assert results["trained_parameters"] == 3 * 32 + 3 + 4 + 102 * 33
    assert results["linear_probe_accuracy"] is None
    assert (tmp_path / "gates.png").is_file() and (tmp_path / "adapter" / "README.md").is_file()


def test_settings_are_chosen_on_the_validation_part(backbone, flowers, tmp_path) -> None:
    results = run(backbone, flowers, tmp_path, "--eval_split", "val")
    assert results["num_eval"] == 2
    assert results["data"][1]["split"] == "val"


@pytest.mark.parametrize(("block", "method"), [("best", "zero_start"), ("2", "gated")])
def test_the_recommended_recipe(backbone, flowers, tmp_path, block, method) -> None:
    """The block is chosen on the validation part, before the run that is scored on the test part."""
    more = [] if method == "zero_start" else ["--method", method]  # the preset's own
    results = run(backbone, flowers, tmp_path, "--preset", "recommended", "--read_block", block, *more)
    config = GatedPromptConfig.from_pretrained(str(tmp_path / "adapter"))
    read = 3 if config.read_from is None else config.read_from
    assert config.zero_start is (method == "zero_start")
    assert config.insert_at == (0 if config.zero_start else (read + 1) // 2)
    assert block == "best" or read == 2
    assert ([part["split"] for part in results["data"]], results["num_eval"]) == (["train", "test"], 3)


def test_killed_inside_an_epoch_and_resumed_ends_with_the_same_bytes(backbone, flowers, tmp_path) -> None:
    run(backbone, flowers, tmp_path / "straight", "--checkpointing_steps", "1")
    fresh()
    stopped_after_steps(3, lambda: run(backbone, flowers, tmp_path / "killed", "--checkpointing_steps", "1"))
    torch.manual_seed(999)
    resume = ["--checkpointing_steps", "1", "--resume_from_checkpoint", "latest", "--dataloader_num_workers", "1"]
    run(backbone, flowers, tmp_path / "killed", *resume)
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "straight")


def test_crops_change_with_epoch_and_seed_and_leave_the_generator_alone(backbone, flowers) -> None:
    transform = tasks.fgvc_transform_for(str(backbone), train=True)  # of 32 pixels
    assert (transform.resize, transform.crop) == (37, 32)
    images = TransformedImages(tasks.load_fgvc_task("flowers", str(flowers)).train, transform)
    first, again, other = (train_fgvc.AugmentedImages(images, seed) for seed in (1, 1, 2))
    state = torch.get_rng_state()
    pixels = [first[i][0] for i in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(pixels[i], again[i][0]) for i in reversed(range(8)))
    assert not all(torch.equal(pixels[i], other[i][0]) for i in range(8))
    first.set_epoch(1)
    assert not all(torch.equal(pixels[i], first[i][0]) for i in range(8))


def test_the_loop_tells_the_images_the_epoch(backbone, flowers, tmp_path, monkeypatch) -> None:
    epochs = []
    monkeypatch.setattr(train_fgvc.AugmentedImages, "set_epoch", lambda self, epoch: epochs.append(epoch))
    run(backbone, flowers, tmp_path)
    assert epochs == [0, 1]


def test_the_papers_sizes(tmp_path) -> None:
    ViTImageProcessor().save_pretrained(tmp_path)
    transform = tasks.fgvc_transform_for(str(tmp_path), train=False)
    assert (transform.resize, transform.crop, transform.train) == (256, 224, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "cats"], "unknown task 'cats'. Choose from: cub, nabirds, flowers, dogs, cars"),
        (["--eval_split", "val200"], "unknown --eval_split 'val200'. Choose from: test, val"),
    ],
)
def test_faults(backbone, flowers, tmp_path, arguments, words) -> None:
    with pytest.raises(DataError, match=words):
        run(backbone, flowers, tmp_path, *arguments)
