"""`--preset recommended` and `--read_block` of train_vtab.py, on a tiny ViT."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel

import train_vtab
from gated_prompt import GatedPromptConfig, GatedPromptError
from gated_prompt.finetune.features import block_features
from gated_prompt.starts.linear_probe import STRENGTHS
from helpers.accelerate_state import fresh
from helpers.interrupted import stopped_after_steps
from paper.probe import best_block
from paper.tasks import load_task, transform_for

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

QUICK = ["--num_train_epochs", "2", "--max_train_samples", "100", "--num_virtual_tokens", "3"]


def run(backbone: Path, output: Path, *more: str) -> dict:
    return train_vtab.main(["--backbone", str(backbone), "--output_dir", str(output), *QUICK, *more])


def probe_accuracy(backbone: Path, block: int) -> float:
    """The best validation accuracy over C of a model that transformers ends after this block."""
    task, transform = load_task("digits", None, "train800", "val200"), transform_for(str(backbone), "digits")
    model = AutoModel.from_pretrained(backbone, num_hidden_layers=block + 1).eval()
    features = []
    for part in (task.train, task.eval):
        with torch.no_grad():
            tokens = model(torch.stack([transform(image) for image, _ in part])).last_hidden_state
        features.append(torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1).double().numpy())
    scaler = StandardScaler().fit(features[0])
    train, held = map(scaler.transform, features)
    probes = [LogisticRegression(C=1 / l2, max_iter=300).fit(train, task.train.labels) for l2 in STRENGTHS]
    return max(one.score(held, task.eval.labels) for one in probes)


@pytest.mark.parametrize("more", [[], ["--method", "gated"]], ids=["zero_start", "gated"])
def test_the_block_is_chosen_on_the_200_though_all_1000_are_trained_on(backbone, tmp_path, capsys, more) -> None:
    results = run(backbone, tmp_path, "--preset", "recommended", *more)
    config = GatedPromptConfig.from_pretrained(str(tmp_path / "adapter"))
    found = [probe_accuracy(backbone, block) for block in range(4)]
    read = 3 if config.read_from is None else config.read_from
    assert f"block {read} has the best linear probe" in capsys.readouterr().out
    assert found[read] >= max(found) - 0.005  # one image: the last digits of features differ
    assert config.zero_start is not bool(more)
    assert config.insert_at == ((read + 1) // 2 if more else 0)
    assert results["data"][0]["split"] == "train800val200" and results["data"][1]["split"] == "test"
    assert (tmp_path / "prefix.safetensors").is_file() is (config.insert_at > 0)
    assert results["steps"] == 2 * 100 / 20
    assert results["accuracy"] > results["linear_probe_accuracy"] - 0.15


def test_resumed_it_ends_with_the_same_bytes(backbone, tmp_path) -> None:
    more = ["--preset", "recommended", "--method", "gated", "--optimizer", "sgd", "--read_block", "best"]
    run(backbone, tmp_path / "straight", *more)
    fresh()
    stopped_after_steps(7, lambda: run(backbone, tmp_path / "killed", *more))
    run(backbone, tmp_path / "killed", *more, "--resume_from_checkpoint", "latest")
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_block_by_number(backbone, tmp_path) -> None:
    run(backbone, tmp_path / "one", "--read_block", "1", "--method", "deep")
    config = GatedPromptConfig.from_pretrained(str(tmp_path / "one" / "adapter"))
    assert (config.read_from, config.insert_at) == (1, 0)
    fresh()
    run(backbone, tmp_path / "last", "--read_block", "3", "--preset", "recommended", "--method", "deep")
    config = GatedPromptConfig.from_pretrained(str(tmp_path / "last" / "adapter"))
    assert (config.read_from, config.insert_at) == (None, 0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--read_block", "4"], "--read_block is '4'. Choose from: best, last, numbers from 0 to 3"),
        (["--read_block", "1", "--method", "lora"], "--read_block 1 is for prompts, and --method lora has none"),
        (["--read_block", "1", "--read_from", "1"], "--read_block 1 and --read_from 1: leave one of them out"),
    ],
)
def test_faults(backbone, tmp_path, more, words) -> None:
    with pytest.raises(GatedPromptError, match=words):
        run(backbone, tmp_path, *more)


def test_of_equal_blocks_the_lowest_is_read() -> None:
    draw = torch.Generator().manual_seed(0)
    good, bad = torch.eye(3).repeat(8, 1), torch.randn(24, 3, generator=draw)
    labels = np.arange(24) % 3
    assert best_block([bad, good, good], labels.tolist(), [bad, good, good], labels.tolist())[0] == 1


def test_features_come_in_the_order_of_the_images(backbone) -> None:
    task, transform = load_task("digits", None, "train800", "val200"), transform_for(str(backbone), "digits")
    pixels = torch.stack([transform(image) for image, _ in task.eval])[:7]
    model = AutoModel.from_pretrained(backbone, add_pooling_layer=False).eval()
    data = torch.utils.data.TensorDataset(pixels, torch.arange(7))
    features = block_features(model, data, Accelerator(), batch_size=3)
    with torch.no_grad():
        tokens = model(pixels).last_hidden_state
    torch.testing.assert_close(features[3], torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1))
