"""Runs of the official code, converted to backbone and adapter, reproduce the official code's logits."""

import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import gated_prompt
from gated_prompt import ConfigError, ConversionError
from gated_prompt.convert import convert_adapter, convert_backbone
from helpers.converted_base import load_base
from helpers.golden_cases import NAMES, Case

POOLING = {  # the official class and its pooling, which the file does not record
    "mae_deep": "prompts_and_patches",
    "mae_gated_temp": "prompts_and_patches",
    "mae_img_pool": "patches",
    "mae_prompt_pool": "prompts",
}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
BANK = "base_model.model.gated_prompt.gated_prompt_"


def save(state: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save({"model": state}, folder / "last_model.pth")  # as the official code saves
    return folder / "last_model.pth"


def convert(case: Case, folder: Path) -> PeftModel:
    path = save(case.state, folder)
    convert_backbone(path, folder / "base", num_attention_heads=4)
    convert_adapter(path, folder / "adapter", POOLING.get(case.name), base_model="some/base")
    return gated_prompt.load(load_base(folder / "base", case.dtype), folder / "adapter").eval()


def off_by(case: Case, model: PeftModel) -> float:
    with torch.no_grad():
        logits = model(case.batch(0)[0]).logits
    wanted = case.expected["out.logits"]
    assert logits.dtype == wanted.dtype
    return float((logits - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_the_official_logits(name, dtype, tmp_path) -> None:
    case = Case(name, dtype)
    model = convert(case, tmp_path)
    assert off_by(case, model) <= TOLERANCE[dtype]
    config = model.peft_config["default"]
    assert (config.deep, config.temperature) == ("deep" in name, "enc.temp" in case.state and "deep" not in name)
    assert config.base_model_name_or_path == "some/base"
    if not config.deep:
        assert config.gates == ("enc.gate_logit" in case.state)


def test_read_outs_and_file(tmp_path) -> None:
    case = Case("moco_clamp", torch.float32)
    model = convert(case, tmp_path)
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert torch.equal(tensors[f"{BANK}temperatures"], case.state["enc.temp"])  # 0.001 and 25 stay in the file
    assert torch.equal(gated_prompt.temperatures(model), case.state["enc.temp"].clamp(0.01, 10.0))
    assert torch.equal(gated_prompt.gates(model), torch.sigmoid(case.state["enc.gate_logit"]))
    assert "official code" in (tmp_path / "adapter/README.md").read_text()


def test_saving_the_loaded_adapter_again_gives_the_same_bytes(tmp_path) -> None:
    convert(Case("mae_gated_temp", torch.float32), tmp_path).save_pretrained(tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_the_report(tmp_path) -> None:
    case = Case("moco_gated_temp", torch.float32)
    report = convert_adapter(save(case.state, tmp_path), tmp_path / "adapter", None)
    assert set(report.dropped) == {k for k in case.state if k.startswith("enc.")} - {
        "enc.prompt_embeddings",
        "enc.gate_logit",
        "enc.temp",
    }
    assert "6 prompts, gates on every block but the last, temperatures, pooling None" in str(report)
    assert "  enc.blocks.*.attn.qkv.weight (4)" in str(report)


def test_gates_of_some_blocks_and_of_too_many(tmp_path) -> None:
    """`GATE_NUM` below, at and beyond the number of blocks: gates are those of the first blocks."""
    state = Case("moco_gated_temp", torch.float32).state
    for count, blocks in ((2, [0, 1]), (3, None), (4, [0, 1, 2, 3]), (6, [0, 1, 2, 3])):
        logits = torch.linspace(-3, 3, count)
        path = save(state | {"enc.gate_logit": logits}, tmp_path)
        report = convert_adapter(path, tmp_path / "adapter", None, overwrite=True)
        assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["gated_blocks"] == blocks
        tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
        assert torch.equal(tensors[f"{BANK}gate_logits"], logits[:4])
        assert ("enc.gate_logit[4:]" in report.dropped) == (count == 6)


def test_deep_prompts_leave_gates_and_temperatures_out(tmp_path) -> None:
    """The official code creates them if configured, but does not use them."""
    case = Case("moco_deep", torch.float32)
    case.state.update({"enc.gate_logit": torch.zeros(3), "enc.temp": torch.full((4,), 0.5)})
    path = save(case.state, tmp_path)
    report = convert_adapter(path, tmp_path / "adapter", None)
    assert "does not use it" in report.dropped["enc.gate_logit"]
    assert "does not use it" in report.dropped["enc.temp"]
    convert_backbone(path, tmp_path / "base", num_attention_heads=4)
    assert off_by(case, gated_prompt.load(load_base(tmp_path / "base"), tmp_path / "adapter").eval()) <= 1e-4


def without(name: str):
    return lambda state: state.pop(name)


def put(name: str, *shape: int):
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("enc.prompt_embeddings"), "lacks enc.prompt_embeddings"),
        (without("head.last_layer.bias"), "lacks head.last_layer.bias"),
        (without("enc.norm.bias"), r"missing key\(s\): enc.norm.bias"),
        (put("enc.prompt_proj.weight", 3, 3), r"unexpected key\(s\), .*: enc.prompt_proj.weight"),
        (put("head.projection.0.weight", 3, 3), r"unexpected key\(s\) .*: head.projection.0.weight"),
        (put("enc.head.weight", 5, 32), r"unexpected key\(s\), .*: enc.head.weight"),
        (put("enc.prompt_embeddings", 6, 32), r"prompt_embeddings has shape \(6, 32\), expected \(1, 0, 32\)"),
        (put("enc.prompt_embeddings", 1, 0, 32), r"prompt_embeddings has shape \(1, 0, 32\)"),
        (put("enc.prompt_embeddings", 1, 6, 16), r"prompt_embeddings has shape \(1, 6, 16\), expected \(1, 6, 32\)"),
        (put("enc.deep_prompt_embeddings", 4, 6, 32), r"has shape \(4, 6, 32\), expected \(3, 6, 32\)"),
        (put("enc.temp", 3), r"enc.temp has shape \(3,\), expected at least \(4,\)"),
        (put("enc.gate_logit", 0), r"enc.gate_logit has shape \(0,\), expected at least \(1,\)"),
        (put("enc.gate_logit", 3, 1), r"enc.gate_logit has shape \(3, 1\)"),
        (put("head.last_layer.weight", 5, 33), r"last_layer.weight has shape \(5, 33\), expected \(5, 32\)"),
        (put("head.last_layer.bias", 4), r"last_layer.bias has shape \(4,\), expected \(5,\)"),
    ],
)
def test_runs_that_are_refused(change, words, tmp_path) -> None:
    state = dict(Case("moco_gated_temp", torch.float32).state)
    change(state)
    with pytest.raises(ConversionError, match=words):
        convert_adapter(save(state, tmp_path), tmp_path / "adapter", None)
    assert os.listdir(tmp_path) == ["last_model.pth"]


def test_a_backbone_is_no_run(tmp_path) -> None:
    state = {k.removeprefix("enc."): v for k, v in Case("moco_shallow", torch.float32).state.items() if "norm" in k}
    with pytest.raises(ConversionError, match=r"no key starts with 'enc\.'"):
        convert_adapter(save(state, tmp_path), tmp_path / "adapter", None)


def test_an_unknown_pooling(tmp_path) -> None:
    path = save(Case("mae_gated_temp", torch.float32).state, tmp_path)
    with pytest.raises(ConfigError, match=r"pooling is 'img_pool'. Expected None or one of 'prompts', 'patches'"):
        convert_adapter(path, tmp_path / "adapter", "img_pool")
    assert os.listdir(tmp_path) == ["last_model.pth"]


def test_a_run_saved_from_several_gpus(tmp_path) -> None:
    case = Case("moco_gated_temp", torch.float32)
    torch.save({f"module.{name}": tensor for name, tensor in case.state.items()}, tmp_path / "run.pth")
    convert_adapter(save(case.state, tmp_path), tmp_path / "one", None)
    report = convert_adapter(tmp_path / "run.pth", tmp_path / "several", None)
    assert "module.enc.cls_token" in report.dropped
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes()
