"""The segmentation script: output files, bit-exact resuming, learning rates, scores, user errors."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score

import gated_prompt
import train_ade20k
from gated_prompt import ConfigError, GatedPromptError
from gated_prompt.errors import DataError
from gated_prompt.finetune.segmentation.scores import score
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.images import InexactDataWarning
from gated_prompt.segmentation.sliding_window import predict
from gated_prompt.training.optim import optimizer_groups
from helpers import two_processes
from helpers.accelerate_state import fresh
from helpers.data_files import real_data
from helpers.interrupted import stopped_after_steps
from paper.segmentation.data import WholeImages
from paper.segmentation.evaluation import confusion_matrix
from paper.segmentation.setr import SetrPupForSemanticSegmentation, poly_schedule

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

QUICK = ["--crop_size", "32", "--head_channels", "4", "--auxiliary_blocks", "1", "2", "--num_virtual_tokens", "3"]
QUICK += ["--max_train_steps", "6", "--per_device_train_batch_size", "2", "--dataloader_num_workers", "0"]
QUICK += ["--learning_rate", "0.02", "--gate_init", "-1", "--multi_scale", "false"]  # three steps per epoch


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images to train on and three to test, of several sizes: a bright square (1) and a dark one (2) on grey."""
    root, draw = tmp_path_factory.mktemp("rooms"), np.random.default_rng(0)
    for split, count in (("training", 6), ("validation", 3)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            height, width = 40 + 4 * i, 56 - 3 * i
            pixels, labels = draw.integers(100, 140, (height, width, 3)), np.zeros((height, width))
            for label, value in ((1, 240), (2, 15)):
                y, x = draw.integers(0, height - 20), draw.integers(0, width - 20)
                pixels[y : y + 18, x : x + 18], labels[y : y + 18, x : x + 18] = value, label
            labels[:, :2] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / f"{i}.jpg")
            Image.fromarray(labels.astype(np.uint8)).save(root / "annotations" / split / f"{i}.png")
    return root


def run(backbone: Path, data: Path, output: Path, *more: str) -> dict:
    where = ["--backbone", str(backbone), "--task", "rooms", "--num_classes", "3", "--data_dir", str(data)]
    return train_ade20k.main([*where, "--output_dir", str(output), *QUICK, *more])


def adapter_bytes(output: Path) -> bytes:
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


def test_what_a_run_leaves_behind(backbone, rooms, tmp_path) -> None:
    results = run(backbone, rooms, tmp_path, "--multi_scale", "true")
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (results["num_train"], results["num_test"], results["steps"]) == (6, 3, 6)
    assert (results["settings"]["stride"], results["settings"]["short_side"]) == (21, 32)
    assert results["after"]["gates"] != results["before"]["gates"]
    head = 64 + 32 * 4 * 9 + 3 * 4 * 4 * 9 + 4 * 8 + 5 * 3
    auxiliary = 64 + 32 * 4 * 9 + 4 * 4 * 9 + 2 * 8 + 5 * 3
    assert results["trained_parameters"] == 3 * 32 + 3 + 4 + head + 2 * auxiliary
    for name, colours in (("gates.png", 5), ("predictions.png", 20)):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("L").resize((64, 32)).getcolors()) > colours  # not blank
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "split: validation" in card
    assert f"mean_iou on the validation part: **{results['single_scale']['mean_iou']:.4f}**" in card
    assert f"the mean IoU is {results['multi_scale']['mean_iou']:.4f}" in card
    assert str(tmp_path) not in card and str(rooms) not in card

    base = SetrPupForSemanticSegmentation(str(backbone), 3, [1, 2], channels=4)
    model = gated_prompt.load(base, tmp_path / "adapter").eval()
    task = train_ade20k.load_task("rooms", str(rooms), 3)
    truth, found = [], []
    for pixels, labels in WholeImages(task.test, (0.5,) * 3, (0.5,) * 3):
        valid = labels != 255
        truth.append(labels[valid])
        found.append(predict(model, pixels, 32, 32, 21, 3).argmax(0)[valid])
    wanted = jaccard_score(torch.cat(truth), torch.cat(found), average="macro")
    assert results["single_scale"]["mean_iou"] == pytest.approx(wanted, abs=1e-9)
    shares = torch.cat(truth).bincount() / len(torch.cat(truth))
    assert results["majority_class"]["pixel_accuracy"] == pytest.approx(shares.max().item(), abs=1e-6)


@pytest.mark.parametrize(("every", "kill_at"), [("epoch", 4), ("2", 5), ("1", 2)])
def test_resumed_ends_with_the_same_bytes(backbone, rooms, tmp_path, every, kill_at) -> None:
    """Killed in an epoch or at its end; prompts, gates, heads and the running statistics of the batch norms."""
    straight = run(backbone, rooms, tmp_path / "straight", "--checkpointing_steps", every)
    fresh()
    stopped_after_steps(kill_at, lambda: run(backbone, rooms, tmp_path / "killed", "--checkpointing_steps", every))
    torch.manual_seed(999)  # the new process has another random state
    np.random.seed(999)
    resumed = run(
        backbone, rooms, tmp_path / "killed", "--checkpointing_steps", every, "--resume_from_checkpoint", "latest"
    )
    assert resumed["steps"] < straight["steps"] == 6
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "straight")
    assert resumed["single_scale"] == straight["single_scale"]
    keys = load_file(tmp_path / "killed" / "adapter" / "adapter_model.safetensors")
    assert sum("running_var" in key for key in keys) == 4 + 2 * 2


def test_seed_decides_and_workers_do_not(backbone, rooms, tmp_path) -> None:
    runs = (("a", "1", "0"), ("b", "1", "2"), ("c", "2", "0"))
    for name, seed, workers in runs:
        run(backbone, rooms, tmp_path / name, "--seed", seed, "--dataloader_num_workers", workers)
        fresh()
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")
    assert adapter_bytes(tmp_path / "a") != adapter_bytes(tmp_path / "c")


def test_mixed_precision(backbone, rooms, tmp_path, monkeypatch) -> None:
    exact = run(backbone, rooms, tmp_path / "exact")
    fresh()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    mixed = run(backbone, rooms, tmp_path / "mixed")
    assert adapter_bytes(tmp_path / "exact") != adapter_bytes(tmp_path / "mixed")
    assert {t.dtype for t in load_file(tmp_path / "mixed" / "adapter" / "adapter_model.safetensors").values()} == {
        torch.float32,
        torch.int64,  # how many batches the batch norms have seen
    }
    assert mixed["single_scale"]["pixel_accuracy"] == pytest.approx(exact["single_scale"]["pixel_accuracy"], abs=0.1)


def test_test_windows_at_once_change_no_score(backbone, rooms, tmp_path) -> None:
    results = []
    for size in ("1", "3", "50"):
        results.append(run(backbone, rooms, tmp_path / size, "--per_device_eval_batch_size", size))
        fresh()
    assert results[0]["single_scale"] == results[1]["single_scale"] == results[2]["single_scale"]


HEADS = 64 + 32 * 36 + 3 * 144 + 32 + 15 + 2 * (64 + 32 * 36 + 144 + 16 + 15)


@pytest.mark.parametrize(
    ("method", "trained"),
    [("shallow", 3 * 32 + HEADS), ("deep", 4 * 3 * 32 + HEADS), ("linear", HEADS), ("full", None)],
)
def test_methods(backbone, rooms, tmp_path, method, trained) -> None:
    results = run(backbone, rooms, tmp_path, "--method", method, "--max_train_steps", "2")
    if trained is None:
        model = SetrPupForSemanticSegmentation(str(backbone), 3, [1, 2], 4)
        trained = sum(p.numel() for p in model.parameters())
    assert results["trained_parameters"] == trained
    assert (tmp_path / "adapter").is_dir() is (method in ("shallow", "deep"))
    if method in ("linear", "full"):
        loaded = SetrPupForSemanticSegmentation.from_pretrained(tmp_path / "model")
        start = SetrPupForSemanticSegmentation(str(backbone), 3, [1, 2], 4)
        pairs = zip(loaded.backbone.parameters(), start.backbone.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is (method == "linear")


def test_learns_to_see_the_squares(backbone, rooms, tmp_path) -> None:
    results = run(backbone, rooms, tmp_path, "--max_train_steps", "60", "--method", "linear")
    assert results["single_scale"]["mean_iou"] > results["majority_class"]["mean_iou"] + 0.15


def test_poly_schedule() -> None:
    """Values of (r - m) (1 - t/T) ** 0.9 + m; every group ends at the same rate m, as in mmsegmentation."""
    body, head = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [body], "lr": 0.001}, {"params": [head], "lr": 0.01}])
    schedule = poly_schedule(optimizer, 160_000, 1e-4)
    assert schedule.get_last_lr() == pytest.approx([0.001, 0.01])
    schedule.last_epoch = 79_999
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([9e-4 * 0.5**0.9 + 1e-4, 9.9e-3 * 0.5**0.9 + 1e-4])
    assert schedule.get_last_lr()[0] == pytest.approx(5.8230e-4, abs=1e-8)
    for step in (159_999, 160_000):  # the last step, and one beyond
        schedule.last_epoch = step
        schedule.step()
        assert schedule.get_last_lr() == pytest.approx([1e-4, 1e-4])


def test_heads_learn_ten_times_as_fast(backbone, rooms, tmp_path) -> None:
    args = train_ade20k.Arguments(backbone=str(backbone), auxiliary_blocks=[1, 2], head_channels=4)
    model = train_ade20k.build_model(args, PromptArguments(), 3)
    own = {"head": {"lr": 0.01}}
    *body, heads = optimizer_groups(model, 0.001, 0.0, own)
    assert ([group["lr"] for group in body], heads["lr"]) == ([0.001] * 3, 0.01)
    assert sum(p.numel() for p in heads["params"]) == HEADS
    assert sum(p.numel() for group in body for p in group["params"]) == 50 * 32 + 3 + 4
    args.method = "linear"
    (heads,) = optimizer_groups(train_ade20k.build_model(args, PromptArguments(), 3), 0.001, 0.0, own)
    assert (heads["lr"], sum(p.numel() for p in heads["params"])) == (0.01, HEADS)
    args.method = "full"
    other, heads = optimizer_groups(train_ade20k.build_model(args, PromptArguments(), 3), 0.001, 0.0, own)
    assert (other["lr"], heads["lr"], sum(p.numel() for p in heads["params"])) == (0.001, 0.01, HEADS)


def test_defaults_are_those_of_the_paper_and_setr_pup() -> None:
    args = train_ade20k.Arguments()
    train_ade20k.fill_in(args)
    assert (args.auxiliary_blocks, args.head_channels) == ([5, 9], 256)
    assert (args.short_side, args.crop_size, args.stride) == (512, 512, 341)
    assert (args.max_train_steps, args.per_device_train_batch_size) == (160_000, 16)
    assert (args.learning_rate, args.min_learning_rate, args.head_learning_rate_factor) == (1e-3, 1e-4, 10)
    assert (args.momentum, args.weight_decay) == (0.9, 0.0)


def test_confusion_matrix_counts_every_labelled_pixel_once(backbone, rooms) -> None:
    model = SetrPupForSemanticSegmentation(str(backbone), 3, [1], 4).eval()
    data = WholeImages(train_ade20k.load_task("rooms", str(rooms), 3).test, (0.5,) * 3, (0.5,) * 3)
    settings = partial(predict, short_side=32, window=32, stride=21, batch_size=2)
    confusion = confusion_matrix(model, data, settings, 3, Accelerator(cpu=True))
    truth = torch.cat([labels[labels != 255] for _, labels in data])
    assert confusion.sum(1).tolist() == truth.bincount(minlength=3).tolist()  # rows are true classes
    assert score(confusion).pixel_accuracy == pytest.approx((confusion.diag().sum() / len(truth)).item())


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.slow
def test_two_processes_score_every_image_once(backbone, rooms, tmp_path) -> None:
    """Three test images for two processes: each is scored once, without omissions or padding."""
    wanted = run(backbone, rooms, tmp_path / "one", "--max_train_steps", "1")["majority_class"]
    where = ["--backbone", str(backbone), "--task", "rooms", "--num_classes", "3", "--data_dir", str(rooms)]
    script = [train_ade20k.__file__, *where, "--output_dir", str(tmp_path / "two"), *QUICK, "--max_train_steps", "2"]
    two_processes.run(*script)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["majority_class"] == wanted
    assert results["steps"] == 2
    assert results["before"]["gates"] != results["after"]["gates"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--task", "cats", "--data_dir", "x"], DataError, "has no JPEGs"),
        (["--task", "camvid"], DataError, "the labels of camvid are built in"),
        (["--data_dir", "no/such/folder"], DataError, "has no JPEGs"),
        (["--method", "magic"], GatedPromptError, "--method: invalid choice: 'magic' .*gated.*, .*gate_only"),
        (["--backbone", "no/such-model"], GatedPromptError, "cannot load --backbone 'no/such-model'"),
        (["--pooling", "patches"], GatedPromptError, "--pooling patches has no effect: the heads read patch tokens"),
        (["--gate_init", "nan"], ConfigError, "gate_init"),
        (
            ["--auxiliary_blocks", "5", "9"],
            GatedPromptError,
            r"auxiliary_blocks are \[5, 9\]. Give one or more",
        ),
        (["--checkpointing_steps", "all"], GatedPromptError, "--checkpointing_steps is 'all'. Give 'epoch' or a"),
        (["--stride", "33"], GatedPromptError, "--stride 33 would leave gaps between windows of 32 pixels"),
        (["--max_train_steps", "0"], GatedPromptError, "--max_train_steps is 0. Give 1 or more"),
        (["--min_learning_rate", "1"], GatedPromptError, "--min_learning_rate is 1.0 and the initial rates are 0.02"),
        (
            ["--head_learning_rate_factor", "0", "--min_learning_rate", "0"],
            GatedPromptError,
            "for the heads, 0.0. Give",
        ),
        (["--per_device_train_batch_size", "7"], GatedPromptError, "6 training images do not fill one batch"),
        (["--resume_from_checkpoint", "no/such"], GatedPromptError, "no checkpoint to resume from"),
    ],
)
def test_faults(backbone, rooms, tmp_path, monkeypatch, arguments, error, words) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=words):
        run(backbone, rooms, tmp_path, *arguments)
    assert not (tmp_path / "results.json").exists()


def test_camvid(backbone, tmp_path) -> None:
    data = ["--task", "camvid", "--data_dir", str(real_data("camvid_subset")), "--backbone", str(backbone)]
    results = train_ade20k.main([*data, "--output_dir", str(tmp_path), *QUICK, "--max_train_samples", "8"])
    assert (results["num_train"], results["num_test"]) == (8, 40)
    assert results["class_names"][0] == "sky"
    assert 0 < results["majority_class"]["mean_iou"] < 1 / 11
    assert len(results["single_scale"]["iou"]) == 11


def test_ade20k(backbone, tmp_path) -> None:
    root = real_data("ade20k_mini", "ADEChallengeData2016")
    for kind in ("images", "annotations"):
        (tmp_path / kind).mkdir()
        for split in ("training", "validation"):
            (tmp_path / kind / split).symlink_to(root / kind / "validation")
    data = ["--data_dir", str(tmp_path), "--backbone", str(backbone), "--output_dir", str(tmp_path / "run")]
    with pytest.warns(InexactDataWarning) as caught:
        results = train_ade20k.main([*data, *QUICK, "--max_train_steps", "2"])
    assert sorted(str(w.message).rpartition(". ")[2] for w in caught if w.category is InexactDataWarning) == [
        "3 images, expected 2000.",
        "3 images, expected 20210.",
    ]
    scored = results["single_scale"]["iou"]
    assert len(scored) == 150
    assert None in scored  # three images do not show all classes
    assert results["data"][1]["exact"] is False
