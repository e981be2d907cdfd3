"""`gated-prompt convert`, and output folders that are written atomically."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import gated_prompt
from gated_prompt import ConversionError
from gated_prompt.cli import convert
from gated_prompt.cli.convert import main
from gated_prompt.config import POOLINGS
from gated_prompt.convert import convert_backbone
from gated_prompt.convert.layouts import KINDS
from helpers.converted_base import load_base
from helpers.golden_cases import Case
from helpers.timm_reference import random_state, tokens


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.save({"model": random_state(dtype=torch.float32)}, tmp_path / "mae.pth")
    return tmp_path / "mae.pth"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_backbone_in_a_process_of_its_own(checkpoint, tmp_path) -> None:
    command = [sys.executable, "-m", "gated_prompt.convert", "backbone", str(checkpoint), str(tmp_path / "vit")]
    run = subprocess.run([*command, "--num_attention_heads", "4"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{checkpoint} (kind: timm)\n-> {tmp_path / 'vit'}: ViTModel, width 16, 3 blocks")
    assert "left out: nothing" in run.stdout
    pixels = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        found = ViTModel.from_pretrained(tmp_path / "vit", add_pooling_layer=False)(pixels).last_hidden_state
    wanted = tokens(random_state(dtype=torch.float32), pixels, heads=4)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_moving_over_from_the_official_code(tmp_path, capsys) -> None:
    case = Case("mae_img_pool", torch.float32)
    torch.save({"model": case.state}, tmp_path / "last_model.pth")
    run, base, adapter = (str(tmp_path / name) for name in ("last_model.pth", "base", "adapter"))
    assert main(["backbone", run, base, "--num_attention_heads", "4"]) == 0
    assert main(["adapter", run, adapter, "--pooling", "patches", "--base_model", base]) == 0
    assert "adapter of 6 prompts" in capsys.readouterr().out
    model = gated_prompt.load(load_base(base), adapter).eval()
    with torch.no_grad():
        logits = model(case.batch(0)[0]).logits
    assert (logits - case.expected["out.logits"]).abs().max() < 1e-4 * case.expected["out.logits"].abs().max()


def test_pooling_none_is_the_models_own(tmp_path) -> None:
    torch.save(Case("moco_gated_temp", torch.float32).state, tmp_path / "run.pth")
    assert main(["adapter", str(tmp_path / "run.pth"), str(tmp_path / "adapter"), "--pooling", "none"]) == 0
    assert '"pooling": null' in (tmp_path / "adapter/adapter_config.json").read_text()


def test_faults_are_one_message_and_leave_nothing(checkpoint, tmp_path, capsys) -> None:
    assert main(["backbone", str(checkpoint), str(tmp_path / "vit")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: the number of attention heads of a model of width 16 is unknown")
    assert os.listdir(tmp_path) == ["mae.pth"]


@pytest.mark.parametrize(
    "arguments", [[], ["backbone"], ["adapter", "run.pth", "out"], ["backbone", "a", "b", "--kind", "ibot"]]
)
def test_incomplete_commands(arguments, capsys) -> None:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith(". See --help for all options.\n") and said.count("\n") == 1


def test_the_arguments_know_what_the_converters_know() -> None:
    """They are read before torch is imported, so they repeat it."""
    assert convert.KINDS == KINDS and convert.POOLINGS == POOLINGS
    assert (tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)) == (convert.IMAGENET_MEAN, convert.IMAGENET_STD)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("backbone", ("mae_pretrain_vit_base.pth", "--num_attention_heads", "MoCo v3's ViT-S", "0.485")),
        ("adapter", ("last_model.pth", "MAE with VIT_POOL_TYPE original, or imgprompt_pool", "--base_model")),
    ],
)
def test_help_explains(command, words, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)


def test_a_folder_that_is_not_empty_stays(checkpoint, tmp_path) -> None:
    out = tmp_path / "vit"
    out.mkdir()
    convert_backbone(checkpoint, out, num_attention_heads=4)  # an empty folder is fine
    before = contents(out)
    torch.save(random_state(seed=5), checkpoint)
    with pytest.raises(
        ConversionError, match=r"is not empty \(it contains config.json, conversion.json, model.safetensors"
    ):
        convert_backbone(checkpoint, out, num_attention_heads=4)
    assert contents(out) == before
    convert_backbone(checkpoint, out, num_attention_heads=4, overwrite=True)
    assert contents(out).keys() == before.keys()
    assert contents(out)["model.safetensors"] != before["model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == ["mae.pth", "vit"]


def test_overwriting_spares_what_no_conversion_wrote(checkpoint, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"cat")
    with pytest.raises(ConversionError, match=r"contains cat\.jpg, which no conversion wrote"):
        convert_backbone(checkpoint, tmp_path / "photos", num_attention_heads=4, overwrite=True)
    with pytest.raises(ConversionError, match="is a file, expected a folder"):
        convert_backbone(checkpoint, checkpoint, num_attention_heads=4, overwrite=True)
    assert contents(tmp_path).keys() == {"mae.pth", "photos/cat.jpg"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_while_writing_leaves_what_was_there(overwrite, checkpoint, tmp_path, monkeypatch) -> None:
    if overwrite:
        convert_backbone(checkpoint, tmp_path / "vit", num_attention_heads=4)
    before = contents(tmp_path)

    def full(self: object, folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(ViTModel, "save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        convert_backbone(checkpoint, tmp_path / "vit", num_attention_heads=4, overwrite=overwrite)
    assert contents(tmp_path) == before
    assert main(["backbone", str(checkpoint), str(tmp_path / "new"), "--num_attention_heads", "4"]) == 1
    assert contents(tmp_path) == before


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_moved(checkpoint, tmp_path, monkeypatch) -> None:
    convert_backbone(checkpoint, tmp_path / "vit", num_attention_heads=4)
    before, rename = contents(tmp_path), os.rename

    def refuse_staging(source: Path, target: Path) -> None:
        if str(source).endswith(".converting"):
            raise OSError("refused")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_staging)
    with pytest.raises(OSError, match="refused"):
        convert_backbone(checkpoint, tmp_path / "vit", num_attention_heads=4, overwrite=True)
    assert contents(tmp_path) == before


def test_a_killed_conversion_leaves_no_folder(checkpoint, tmp_path) -> None:
    code = (
        "import os, sys, transformers; from gated_prompt.convert import convert_backbone\n"
        "transformers.ViTImageProcessor.save_pretrained = lambda *_: os._exit(9)\n"
        "convert_backbone(sys.argv[1], sys.argv[2], num_attention_heads=4)"
    )
    out = tmp_path / "vit"
    run = subprocess.run([sys.executable, "-c", code, str(checkpoint), str(out)], capture_output=True, check=False)
    assert run.returncode == 9
    assert sorted(os.listdir(tmp_path)) == [".vit.converting", "mae.pth"]
    convert_backbone(checkpoint, out, num_attention_heads=4)  # and the next one cleans up
    assert sorted(os.listdir(tmp_path)) == ["mae.pth", "vit"]
