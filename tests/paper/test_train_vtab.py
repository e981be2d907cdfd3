"""The training script: what it leaves behind, resuming to the same bytes, faults that users make."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageClassification, HfArgumentParser

import gated_prompt
import train_vtab
from gated_prompt import ConfigError, GatedPromptConfig, GatedPromptError
from gated_prompt.cli import predict
from gated_prompt.errors import DataError
from gated_prompt.finetune import methods
from gated_prompt.finetune.recipe import PROMPT_METHODS
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.images import InexactDataWarning
from helpers.accelerate_state import fresh
from helpers.data_files import real_data
from helpers.interrupted import stopped_after_steps
from paper import classification
from paper.records import raise_if_diverged
from paper.tasks import load_task, transform_for

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

QUICK = ["--num_train_epochs", "3", "--warmup_epochs", "1", "--max_train_samples", "96", "--num_virtual_tokens", "3"]
QUICK += ["--per_device_train_batch_size", "32", "--gate_init", "-1"]  # three steps an epoch


def run(backbone: Path, output: Path, *more: str) -> dict:
    return train_vtab.main(["--backbone", str(backbone), "--output_dir", str(output), *QUICK, *more])


def adapter_bytes(output: Path) -> bytes:
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


def test_what_a_run_leaves_behind(backbone: Path, tmp_path: Path) -> None:
    results = run(backbone, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["num_train"] == 96
    assert results["num_eval"] == 797
    assert results["trained_parameters"] == 3 * 32 + 3 + 4 + 10 * 32 + 10
    assert results["steps"] == 9
    assert set(results["blocks"]["gates"]) == {0, 1, 2}
    assert results["before"]["gates"] == pytest.approx([0.26894] * 3, abs=1e-4)
    assert results["after"]["gates"] != results["before"]["gates"]
    assert results["versions"]["gated_prompt"] == gated_prompt.__version__
    with Image.open(tmp_path / "gates.png") as picture:
        assert len(picture.convert("L").resize((64, 32)).getcolors()) > 5  # not blank
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "import gated_prompt" in card
    assert f"{results['accuracy']:.4f}" in card
    assert str(backbone) not in card.split("## Settings")[0]

    base = AutoModelForImageClassification.from_pretrained(backbone, num_labels=10)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert gated_prompt.gates(model).tolist() == results["after"]["gates"]
    task = load_task("digits")
    transform = transform_for(str(backbone), "digits")
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image, _ in task.eval])
        found = (model(pixels).logits.argmax(1) == torch.tensor(task.eval.labels)).float().mean().item()
    assert found == pytest.approx(results["accuracy"], abs=1e-6)


@pytest.mark.parametrize(("every", "kill_at"), [("epoch", 4), ("epoch", 6), ("2", 5), ("1", 7)])
def test_resumed_ends_with_the_same_bytes(backbone, tmp_path, every, kill_at) -> None:
    """Killed in the middle of an epoch or right at its end, with checkpoints by epoch or by step."""
    run(backbone, tmp_path / "straight", "--checkpointing_steps", every)
    stopped_after_steps(kill_at, lambda: run(backbone, tmp_path / "killed", "--checkpointing_steps", every))
    assert 1 <= len(list((tmp_path / "killed" / "checkpoints").iterdir())) <= 2
    torch.manual_seed(999)  # the new process has another random state
    run(backbone, tmp_path / "killed", "--checkpointing_steps", every, "--resume_from_checkpoint", "latest")
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "straight")


def test_the_head_starts_as_a_probe(backbone: Path, tmp_path: Path) -> None:
    """Nothing is learned at rate 0: the accuracy is that of the start, far above a head of random numbers."""
    still = ["--num_train_epochs", "1", "--max_train_samples", "200", "--resume_from_checkpoint", "latest"]
    chance = run(backbone, tmp_path / "random", *still)["accuracy"]  # the first epoch of the warm-up runs at rate 0
    fresh()
    started = run(backbone, tmp_path / "probe", *still, "--head_init", "probe")
    assert chance < 0.3 and started["accuracy"] > 0.5
    assert started["accuracy"] > started["linear_probe_accuracy"] - 0.15


def test_seeds(backbone: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run(backbone, tmp_path / name, "--seed", seed, "--num_train_epochs", "2")
        fresh()
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")
    assert adapter_bytes(tmp_path / "a") != adapter_bytes(tmp_path / "c")


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("gate_only", 3 * 32 + 3 + 330),
        ("temperature_only", 3 * 32 + 4 + 330),
        ("shallow", 3 * 32 + 330),
        ("deep", 4 * 3 * 32 + 330),
        ("linear", 330),
        ("full", None),
        ("lora", 4 * 2 * 8 * (32 + 32) + 330),  # 4 blocks, queries and values, rank 8
    ],
)
def test_methods(backbone, tmp_path, method, trained) -> None:
    results = run(backbone, tmp_path, "--method", method, "--num_train_epochs", "2", "--pooling", "patches")
    base = AutoModelForImageClassification.from_pretrained(backbone, num_labels=10)
    everything = sum(p.numel() for p in base.parameters())
    assert results["trained_parameters"] == (everything if trained is None else trained)
    assert (tmp_path / "adapter").is_dir() is (method not in ("linear", "full"))
    assert (tmp_path / "model").is_dir() is (method in ("linear", "full"))
    assert (tmp_path / "adapter" / "predictor.json").is_file() is (method in PROMPT_METHODS)


def test_predict_takes_the_adapter(backbone, tmp_path) -> None:
    """The accuracy of the run, from predictions of the same scans as image files."""
    results = run(backbone, tmp_path / "run", "--num_train_epochs", "2", "--max_train_samples", "200")
    scans = load_task("digits", None, "train800val200", "test").eval
    (tmp_path / "scans").mkdir()
    for index in range(len(scans)):
        scans.images[index].save(tmp_path / "scans" / f"{index:04d}.png")
    said = tmp_path / "said.jsonl"
    predict.main(
        ["--images", str(tmp_path / "scans"), "--adapters", str(tmp_path / "run" / "adapter"), "--output", str(said)]
    )
    rows = [json.loads(line)["classes"][0] for line in said.read_text().splitlines()]
    right = [name == scans.class_names[label] for name, label in zip(rows, scans.labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(results["accuracy"])


def test_the_schedule_is_the_papers() -> None:
    """Rate 0 in the first epoch, linear to epoch 10, then a cosine: the values the official loop uses."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = classification.get_cosine_schedule_with_warmup(optimizer, 10, 100)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.0003, abs=1e-4)


def test_arguments_mirror_the_config() -> None:
    parsed = vars(HfArgumentParser(PromptArguments).parse_args_into_dataclasses([])[0])
    config = dataclasses.asdict(GatedPromptConfig())
    assert set(config) - set(parsed) == {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "num_layers", "hidden_size", "num_heads", "detected_prefix_tokens", "weights_sha256"),
    }
    for name, value in parsed.items():
        wanted = {"pooling": "auto", "temperature_range": [0.01, 10.0]}.get(name, config[name])
        assert value == wanted, name
    args = ["--gates", "false", "--gated_blocks", "1", "2", "--temperature_range", "0.1", "5"]
    parsed = HfArgumentParser(PromptArguments).parse_args_into_dataclasses(args)[0]
    assert (parsed.gates, parsed.gated_blocks, parsed.temperature_range) == (False, [1, 2], [0.1, 5.0])


def test_method_sets_the_config() -> None:
    arguments = PromptArguments()
    gated = methods.prompt_config("gated", arguments, mae_backbone=True)
    assert gated == GatedPromptConfig(pooling="prompts_and_patches")
    assert methods.prompt_config("gated", arguments, mae_backbone=False) == GatedPromptConfig()
    shallow = methods.prompt_config("shallow", arguments, mae_backbone=False)
    assert shallow == GatedPromptConfig(gates=False, temperature=False)
    assert methods.prompt_config("deep", arguments, False) == GatedPromptConfig(deep=True, temperature=False)
    assert methods.prompt_config("linear", arguments, False) is None


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ({"size": {"height": 48, "width": 48}}, 48),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, 32),
        ({"size": {"shortest_edge": 40}}, 40),
        ({"size": 56}, 56),
        ({"size": {"shortest_edge": 40}, "crop_size": 24}, 24),
    ],
)
def test_the_transform_is_that_of_the_backbone(tmp_path, size, side) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | size))
    pixels = transform_for(str(tmp_path), "digits")(Image.new("RGB", (30, 20), (255, 0, 51)))
    assert pixels.shape == (3, side, side)
    assert torch.allclose(pixels[:, 0, 0], torch.tensor([2.0, -2.0, -1.2]))


@pytest.mark.parametrize("left", [["image_mean", "image_std"], ["size", "image_std"], None])
def test_a_backbone_without_a_preprocessor_is_refused(tmp_path, monkeypatch, left) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if left is not None:
        values = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 32}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({name: values[name] for name in left}))
    with pytest.raises(GatedPromptError, match="cannot read size, image_mean and image_std from the preprocessor"):
        transform_for(str(tmp_path), "digits")


def test_digits_are_split_like_vtab() -> None:
    task = load_task("digits")
    assert (len(task.train), len(task.eval)) == (1000, 797)
    assert task.class_names == list("0123456789")
    assert task.train[0][0].size == (8, 8)
    pixels = [image.tobytes() for part in (task.train, task.eval) for image, _ in part]
    assert len(set(pixels)) == len(pixels) == 1797


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--task", "cats"], DataError, "unknown task 'cats'. Choose from: digits, caltech101"),
        (["--method", "adapter"], GatedPromptError, "--method: invalid choice: 'adapter' .*gated.*, .*gate_only"),
        (["--optimizer", "lion"], GatedPromptError, "--optimizer: invalid choice: 'lion' .*sgd.*, .*adamw"),
        (["--checkpointing_steps", "0"], GatedPromptError, "--checkpointing_steps is '0'. Give 'epoch' or a number"),
        (["--backbone", "no/such-model"], GatedPromptError, "cannot load --backbone 'no/such-model'"),
        (["--gate_init", "nan", "--num_virtual_tokens", "0"], ConfigError, r"2 fault\(s\)"),
        (["--insert_at", "9"], ConfigError, "insert_at is 9. The last block"),
        (["--resume_from_checkpoint", "no/such"], GatedPromptError, "no checkpoint to resume from"),
    ],
)
def test_faults(backbone, tmp_path, monkeypatch, arguments, error, words) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=words):
        run(backbone, tmp_path, *arguments)


def test_output_that_cannot_be_written(backbone, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GatedPromptError, match=r"cannot write into --output_dir .* Give a folder"):
        run(backbone, tmp_path / "file")


def test_adamw_moves_everything_by_its_rate(backbone: Path, tmp_path: Path) -> None:
    """Its first step is the rate, whatever the size of the gradient (but for the smallest)."""
    one_step = ["--num_train_epochs", "1", "--warmup_epochs", "0", "--max_train_samples", "32", "--optimizer", "adamw"]
    results = run(backbone, tmp_path, *one_step, "--learning_rate", "0.02", "--gate_learning_rate", "0.1")
    moved = torch.tensor(results["after"]["gates"]).logit() - torch.tensor(results["before"]["gates"]).logit()
    torch.testing.assert_close(moved.abs(), torch.full((3,), 0.1), rtol=0.05, atol=0)
    temperatures = torch.tensor(results["after"]["temperatures"])
    torch.testing.assert_close((temperatures - 1).abs(), torch.full((4,), 0.02), rtol=0.05, atol=0)


def test_a_vtab_task_from_the_folder_layout(backbone, tmp_path) -> None:
    layout = real_data("vtab1k_layout_fixture")
    train, test = (pytest.warns(InexactDataWarning, match=f"lists {count} images, expected") for count in (100, 60))
    with test, train:
        results = run(backbone, tmp_path, "--task", "dtd", "--data_dir", str(layout), "--num_train_epochs", "2")
    assert (results["num_train"], results["num_eval"]) == (96, 60)
    assert results["trained_parameters"] == 3 * 32 + 3 + 4 + 47 * 33  # all 47 classes, though the copy shows 10
    assert results["data"][0]["exact"] is False


def test_a_curve_changes_nothing_and_survives_a_kill(backbone, tmp_path) -> None:
    plain = run(backbone, tmp_path / "plain")
    fresh()
    stopped_after_steps(4, lambda: run(backbone, tmp_path / "curve", "--curve"))
    results = run(backbone, tmp_path / "curve", "--curve", "--resume_from_checkpoint", "latest")
    assert adapter_bytes(tmp_path / "curve") == adapter_bytes(tmp_path / "plain")
    assert [row["epoch"] for row in results["curve"]] == [1, 2, 3]
    assert [row["learning_rate"] for row in results["curve"]] == pytest.approx([0, 0.03, 0.015])
    assert [row["loss"] for row in results["curve"]] == [row["loss"] for row in plain["curve"]]
    assert results["curve"][-1]["test"] == results["accuracy"] == plain["accuracy"]
    best = max(row["validation"] for row in results["curve"])
    assert results["best_epoch"] == next(row for row in results["curve"] if row["validation"] == best)
    assert plain["best_epoch"] is None and set(plain["curve"][0]) == {"epoch", "loss", "learning_rate"}


def test_a_run_that_diverges_has_no_accuracy(backbone, tmp_path) -> None:
    results = run(backbone, tmp_path, "--learning_rate", "1e30")
    assert (results["diverged"], results["accuracy"]) == (2, None)  # the first epoch runs at rate 0
    assert results["curve"][-1]["loss"] is None and len(results["curve"]) == 2
    assert json.loads((tmp_path / "results.json").read_text())["diverged"] == 2
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(GatedPromptError, match=r"the run diverged: .* after epoch 2"):
        raise_if_diverged(results)
