"""From published checkpoints to a judged table, in small: every mistake on the way is seen, and none costs a table.

The training scripts run in this process, for starting one takes longer than these runs do.
"""

import json
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reproduce_tables
from gated_prompt.convert import convert_backbone
from helpers.accelerate_state import fresh
from helpers.interrupted import stopped_after_steps, train_here
from helpers.timm_reference import random_state
from paper import jobs, records
from paper.cost import Speed, cost_of
from paper.jobs import Run
from paper.records import read_records

pytestmark = pytest.mark.filterwarnings("ignore::gated_prompt.images.InexactDataWarning")
QUICK = ["--num_train_epochs", "2", "--warmup_epochs", "0", "--per_device_train_batch_size", "16"]
QUICK += ["--num_virtual_tokens", "2", "--dataloader_num_workers", "0"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(jobs, "_train", train_here)
    yield
    fresh()


@pytest.fixture(scope="module")
def mae(tmp_path_factory) -> Path:
    """A random MAE encoder in the published format, converted."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"model": random_state()}, folder / "mae_pretrain_vit_base.pth")
    convert_backbone(folder / "mae_pretrain_vit_base.pth", folder / "mae-vit-b", num_attention_heads=4)
    return folder / "mae-vit-b"


@pytest.fixture(scope="module")
def moco(tmp_path_factory) -> Path:
    """A random file of MoCo v3's linear evaluation, which the paper used, converted."""
    folder = tmp_path_factory.mktemp("weights")
    width = random_state()["norm.weight"].shape[0]
    state = {**random_state(), "head.weight": torch.randn(1000, width), "head.bias": torch.randn(1000)}
    content = {"arch": "vit_base", "epoch": 90, "state_dict": {f"module.{name}": t for name, t in state.items()}}
    torch.save(content, folder / "linear-vit-b-300ep.pth.tar")
    convert_backbone(folder / "linear-vit-b-300ep.pth.tar", folder / "moco-vit-b", num_attention_heads=4)
    return folder / "moco-vit-b"


@pytest.fixture
def vtab(tmp_path: Path) -> Path:
    """The vtab-1k layout of three tasks, 24 + 6 images to train on and 9 to test; colours tell the class."""
    draw = np.random.default_rng(0)
    for task in ("dtd", "svhn", "kitti"):
        for split, count in {"train800": 24, "val200": 6, "train800val200": 30, "test": 9}.items():
            folder = tmp_path / "vtab-1k" / task / "images" / split
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 60, (16, 20, 3), dtype=np.uint8)
                pixels[..., i % 3] += 150
                Image.fromarray(pixels).save(folder / f"{i:06d}.jpg")
            lines = [f"images/{split}/{i:06d}.jpg {i % 3}\n" for i in range(count)]
            (tmp_path / "vtab-1k" / task / f"{split}.txt").write_text("".join(lines))
    return tmp_path / "vtab-1k"


@pytest.fixture
def fgvc(tmp_path: Path) -> Path:
    """VPT's layout of Flowers, one training image a class."""
    folder = tmp_path / "fgvc" / "flowers"
    (folder / "jpg").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split, labels in {"train": range(102), "val": (0, 3), "test": (0, 1, 2)}.items():
        entries = {}
        for i, label in enumerate(labels):
            name = f"jpg/{split}_{i:03d}.jpg"
            exif = Image.Exif()
            exif[0x0112] = 6 if (split, i) == ("test", 0) else 1
            Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name, exif=exif)
            entries[name] = label + 1
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return folder.parent


def table(*argv: object) -> tuple[int, str]:
    """Status and output of reproduce_tables.py."""
    with redirect_stdout(StringIO()) as said:
        status = reproduce_tables.main([str(word) for word in argv])
    return status, said.getvalue()


def test_the_dry_run_finds_what_is_missing(mae, moco, vtab, fgvc, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    common = ["--dry_run", "--output_dir", out, "--tasks", "dtd", "svhn", "dmlab", "--vtab_dir", vtab]
    (vtab / "svhn" / "images" / "test" / "000003.jpg").unlink()
    status, said = table(*common, "--backbone", mae, "--", *QUICK)
    report = json.loads((out / "vtab-mae-dry_run.json").read_text())
    assert status == 1
    assert any("svhn: test: " in fault and "000003.jpg" in fault for fault in report["missing"])
    assert report["tasks"]["dtd"]["counts"] == {"train800val200": 30, "train800": 24, "test": 9, "val200": 6}
    assert report["tasks"]["dtd"]["states"]["test"] == "inexact"
    assert report["runs"] == 3 * 3 * (7 + 5)
    (dmlab,) = [fault for fault in report["missing"] if "dmlab" in fault]
    assert dmlab.startswith("dmlab: no folders of these names in ")
    speed = report["speed"]["gated"]
    assert f"| dmlab | missing |  |  |  | 36 | {hours_of_dmlab(report['speed']):.2f} |" in said
    assert speed["train_operations"] > 1.9 * speed["eval_operations"] > 0
    assert report["weights"]["checkpoint"] is None and len(report["weights"]["md5"]) == 32
    assert all(speed["train"] > 0 and speed["eval"] > 0 for speed in report["speed"].values())
    assert set(report["speed"]) == {"shallow", "deep", "gated"}
    assert "| dtd |" in said and "Missing:\n\n- " in said
    assert not list(out.glob("runs/*"))

    monkeypatch.setitem(records.KNOWN, report["weights"]["md5"][:6], "the published file")
    other = ["--dry_run", "--output_dir", out, "--table", "fgvc", "--tasks", "flowers", "--fgvc_dir", fgvc]
    table(*other, "--backbone", moco, "--methods", "gated", "--", *QUICK)
    report = json.loads((out / "fgvc-moco-dry_run.json").read_text())
    assert report["tasks"]["flowers"]["turned"] == [1, 107]


def hours_of_dmlab(speeds: dict) -> float:
    """Of two epochs: seven rates on 800 and 200 images, five seeds on 1000 and 22,735."""
    seconds = [(7 * 1600 + 5 * 2000) * one["train"] + (7 * 200 + 5 * 22735) * one["eval"] for one in speeds.values()]
    return sum(seconds) / 3600


def test_the_dry_run_of_ade20k(mae, tmp_path) -> None:
    for split, count in {"training": 2, "validation": 1}.items():
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (48, 40)).save(tmp_path / "images" / split / f"{i}.jpg")
            Image.new("L", (48, 40), 1).save(tmp_path / "annotations" / split / f"{i}.png")
    argv = ["--dry_run", "--table", "ade20k", "--output_dir", tmp_path / "out", "--ade20k_dir", tmp_path]
    small = ["--crop_size", "32", "--head_channels", "4", "--auxiliary_blocks", "1", "2", "--max_train_steps", "2"]
    status, said = table(*argv, "--backbone", mae, "--methods", "gated", "--seeds", 1, "--", *small)
    report = json.loads((tmp_path / "out" / "ade20k-mae-dry_run.json").read_text())
    assert (
        status == 1
        and "- ade20k: fewer images than the benchmark has (training 2 of 20210, validation 1 of 2000)" in said
    )
    assert report["tasks"]["ade20k"]["counts"] == {"training": 2, "validation": 1}
    assert report["runs"] == 2

    args = ["--crop_size", "32", "--max_train_steps", "2"]
    run = Run("train_ade20k.py", {"per_device_train_batch_size": 8}, extra=tuple(args), processes=2)
    seconds = 3600 * cost_of([run], {"validation": 3}, Speed(10.0, 1.0, 0, 0, 0, 0)).hours
    # An image of 32 x 43 pixels takes two windows. At six scales, it takes 1 + 1 + 2 + 4 + 6 + 12, and mirrored again.
    assert seconds == pytest.approx(2 * 16 * 10.0 + 3 * (2 + 2 * 26))


def test_weights_that_are_not_finite_or_not_those_converted_are_reported(mae, tmp_path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(mae, tmp_path / "mae")
    state = load_file(tmp_path / "mae" / "model.safetensors")
    name = next(iter(state))
    state[name].view(-1)[0] = float("nan")
    save_file(state, tmp_path / "mae" / "model.safetensors", metadata={"format": "pt"})
    faults = " ".join(records.check_weights(str(tmp_path / "mae")).faults)
    assert "not those that conversion.json says were converted" in faults
    assert f"{name} contains NaN" in faults
    assert records.check_weights(str(mae)).faults == []


def test_a_table_with_every_mishap(mae, vtab, tmp_path, capsys) -> None:
    """Search, a rate that diverges, a kill, a task without its data, exchanged weights, and what the table says."""
    out = tmp_path / "out"
    common = ["--output_dir", out, "--scheduler", "serial", "--tasks", "dtd", "svhn", "kitti", "--methods", "gated"]
    common += ["--seeds", 42, 44, "--learning_rates", 0.05, 0.5, 1e30, "--vtab_dir", vtab, "--backbone", mae]
    (vtab / "svhn" / "images" / "train800" / "000001.jpg").write_bytes(b"no image")  # found only when decoded
    (vtab / "kitti" / "test.txt").unlink()  # found before anything runs
    stopped_after_steps(6, lambda: table(*common, "--", *QUICK))
    assert len(read_records(out)) == 1 and list(out.glob("runs/*/checkpoints/step_*"))  # killed in its second run
    capsys.readouterr()

    status, said = table(*common, "--", *QUICK)
    assert status == 1
    assert "the runs of kitti are left out, for its data failed" in said
    made = json.loads((out / "vtab-mae.json").read_text())
    assert made["complete"] is False and set(made["faults"]) == {"kitti"}
    search = made["rows"]["gated"]["search"]["dtd"]
    assert [one["diverged"] for one in search["tried"]] == [False, False, True]
    assert search["best"]["learning_rate"] in (0.05, 0.5)
    assert made["rows"]["gated"]["search"]["svhn"]["best"] is None
    assert made["rows"]["gated"]["scores"]["dtd"]["complete"] is True
    assert len([run for run in out.glob("runs/svhn-*") if (run / "log.txt").is_file()]) == 1  # siblings were not tried
    text = (out / "vtab-mae.md").read_text()
    assert "diverged" in text and "Missing in gated: " in text
    written = [json.loads(file.read_text()) for file in out.glob("results/*.json")]
    assert len(written) == 3 + 2
    ended = next(record for record in written if record["results"]["diverged"])
    assert ended["results"]["accuracy"] is None
    for record in written:
        assert record["key"]["identity"]["weights"] == record["results"]["backbone"]["weights"]
        assert set(record["results"]["machine"]) >= {"host", "commit", "cuda", "driver"}
        assert record["seconds"] > 0
        assert len(record["results"]["curve"]) == (record["results"]["diverged"] or 2)  # a diverged run has ended
    times = {file.name: file.stat().st_mtime_ns for file in out.glob("results/*.json")}

    table(*common, "--", *QUICK, "--per_device_eval_batch_size", "8")  # neutral: nothing runs again
    assert {file.name: file.stat().st_mtime_ns for file in out.glob("results/*.json")} == times

    state = torch.load(mae.parent / "mae_pretrain_vit_base.pth", weights_only=True)["model"]
    state["norm.weight"] = state["norm.weight"] + 0.1
    torch.save({"model": state}, tmp_path / "other.pth")
    convert_backbone(tmp_path / "other.pth", tmp_path / "mae-vit-b", num_attention_heads=4)
    others = [tmp_path / "mae-vit-b" if word == mae else word for word in common]
    os.rename(tmp_path / "mae-vit-b", tmp_path / "mae-other")
    os.symlink(mae, tmp_path / "mae-vit-b")
    assert dtd_of(others, out) == made["rows"]["gated"]["scores"]["dtd"]["text"]  # the same weights elsewhere
    os.unlink(tmp_path / "mae-vit-b")
    os.rename(tmp_path / "mae-other", tmp_path / "mae-vit-b")
    assert dtd_of(others, out) == "not run"  # other weights under the same path


def dtd_of(argv: list[object], out: Path) -> str:
    """The cell of dtd in a table that is only written."""
    table(*argv, "--scheduler", "none", "--", *QUICK)
    return json.loads((out / "vtab-mae.json").read_text())["rows"]["gated"]["scores"]["dtd"]["text"]


def test_the_papers_settings_first_and_both_readings(moco, fgvc, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    common = ["--table", "fgvc", "--output_dir", out, "--scheduler", "serial", "--tasks", "flowers", "--seeds", 42]
    status, said = table(*common, "--stage", "paper", "--curve", "--fgvc_dir", fgvc, "--backbone", moco, "--", *QUICK)
    made = json.loads((out / "fgvc-moco-paper.json").read_text())
    assert (status, made["complete"], list(made["rows"])) == (0, True, ["gated"])
    (record,) = read_records(out).values()
    assert record["settings"]["learning_rate"] == 1.0  # Table 5
    assert [set(row) for row in record["curve"]] == [{"epoch", "loss", "learning_rate", "validation", "test"}] * 2
    best = max(record["curve"], key=lambda row: (row["validation"], -row["epoch"]))
    assert record["best_epoch"] == best
    assert made["rows"]["gated"]["best_epoch"]["flowers"]["by_seed"] == {"42": pytest.approx(100 * best["test"])}
    assert record["accuracy"] == record["curve"][-1]["test"]
    assert "| gated | flowers |" in said and "settings changed by --num_train_epochs" in said
    assert made["rows"]["gated"]["verdicts"]["flowers"]["verdict"].startswith("not comparable")
    assert "for 1000 classes is left out. A new one for 102 classes is trained" in capsys.readouterr().out + said
