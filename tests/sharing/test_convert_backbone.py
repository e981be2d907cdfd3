"""Checkpoints of every published layout become transformers' ViT with the same outputs; others are refused."""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import ViTForImageClassification, ViTImageProcessor, ViTModel

from gated_prompt import ConversionError
from gated_prompt.convert import convert_backbone
from helpers.timm_reference import State, logits, random_state, tokens

HEADS = 4


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def noise(*names: str) -> State:
    return {name: torch.randn(2, 2) for name in names}


OTHER = random_state(seed=7)  # another network in the same file, which must not be taken
MOCO_SSL = {
    **under("module.momentum_encoder.", OTHER),
    **noise("module.base_encoder.head.0.weight", "module.base_encoder.head.1.running_mean"),
    "module.base_encoder.head.1.num_batches_tracked": torch.tensor(3),
    **noise("module.predictor.0.weight", "module.momentum_encoder.head.0.weight"),
}
DINO_HEAD = ("head.mlp.0.weight", "head.last_layer.weight_g", "head.last_layer.weight_v")
# What the published code saves in addition to the weights: command lines, and learning rates as NumPy numbers.
RUN = {
    "epoch": 300,
    "args": argparse.Namespace(arch="vit_base", lr=1e-4),
    "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-4), "step": np.int64(3)}]},
}


def mae(state: State) -> object:
    return {"model": state}


def mae_with_decoder(state: State) -> object:
    return {"model": state | noise("mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight"), **RUN}


def moco_ssl(state: State) -> object:
    return {"epoch": 300, "arch": "vit_base", "state_dict": under("module.base_encoder.", state) | MOCO_SSL}


def moco_linear(state: State) -> object:
    return {"arch": "vit_base", "best_acc1": torch.tensor(76.7), "state_dict": under("module.", state), "epoch": 90}


def dino_teacher(state: State) -> object:
    return {
        "student": under("module.backbone.", OTHER),
        "teacher": under("backbone.", state) | noise(*DINO_HEAD),
        **RUN,
    }


def dino_student(state: State) -> object:
    return {"student": under("module.backbone.", state) | noise(*(f"module.{name}" for name in DINO_HEAD))}


def plain(state: State) -> object:
    return state


def run_of_official_code(state: State) -> object:
    names = ("enc.prompt_embeddings", "enc.gate_logit", "enc.temp", "head.last_layer.weight", "head.last_layer.bias")
    return {"model": under("enc.", state) | noise(*names)}


LAYOUTS = [
    (mae, None, "timm", 0),  # a published MAE file is an encoder with timm's names, indistinguishable from timm's
    (mae, "mae", "mae", 0),
    (mae_with_decoder, None, "mae", 3),
    (moco_ssl, None, "moco", len(MOCO_SSL)),
    (moco_linear, None, "moco", 0),
    (dino_teacher, None, "dino", 3),
    (dino_student, None, "dino", 3),
    (plain, "dino", "dino", 0),
    (plain, None, "timm", 0),
    (run_of_official_code, None, "official", 5),
]


def save(content: object, folder: Path) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def pixels(size: int = 12, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, size, size, generator=generator, dtype=torch.float64)


def load(cls, folder: Path, dtype: torch.dtype = torch.float64):
    """Load the model strictly: transformers would initialize missing weights at random."""
    kwargs = {"add_pooling_layer": False} if cls is ViTModel else {}
    model, info = cls.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **kwargs
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@pytest.mark.parametrize(("layout", "asked", "kind", "dropped"), LAYOUTS)
def test_every_layout_gives_the_same_tokens(layout, asked, kind, dropped, tmp_path) -> None:
    state = random_state()
    report = convert_backbone(save(layout(state), tmp_path), tmp_path / "vit", kind=asked, num_attention_heads=HEADS)
    assert report.kind == kind
    assert len(report.dropped) == dropped
    with torch.no_grad():
        found = load(ViTModel, tmp_path / "vit")(pixels()).last_hidden_state
    wanted = tokens(state, pixels(), HEADS)
    assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()
    with torch.no_grad():  # the epsilon of ViTConfig's default would show
        other = tokens(state, pixels(), HEADS, eps=1e-12)
    assert (other - wanted).abs().max() > 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("layout", [mae, moco_linear, plain])
def test_a_linear_head_becomes_the_classifier(layout, tmp_path) -> None:
    state = random_state(labels=7)
    convert_backbone(save(layout(state), tmp_path), tmp_path / "vit", num_attention_heads=HEADS)
    model = load(ViTForImageClassification, tmp_path / "vit")
    with torch.no_grad():
        found = model(pixels()).logits
    wanted = logits(state, pixels(), HEADS)
    assert found.shape == (2, 7)
    assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()


@pytest.mark.parametrize(
    "sizes",
    [
        {"qkv_bias": False},
        {"width": 24, "depth": 2, "mlp_width": 36, "patch": 5, "image": 20},
        {"channels": 1},
    ],
    ids=["no-qkv-bias", "sizes", "grey"],
)
def test_the_architecture_is_read_off_the_shapes(sizes, tmp_path) -> None:
    state = random_state(**sizes)
    size, channels = sizes.get("image", 12), sizes.get("channels", 3)
    means = {"image_mean": [0.5], "image_std": [0.25]} if channels == 1 else {}
    convert_backbone(save(state, tmp_path), tmp_path / "vit", num_attention_heads=HEADS, **means)
    with torch.no_grad():
        found = load(ViTModel, tmp_path / "vit")(pixels(size, channels)).last_hidden_state
    wanted = tokens(state, pixels(size, channels), HEADS)
    assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()
    processor = json.loads((tmp_path / "vit/preprocessor_config.json").read_text())
    assert processor["size"] == {"height": size, "width": size}
    assert processor["image_mean"] == ([0.5] if channels == 1 else [0.485, 0.456, 0.406])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_is_kept(dtype, tmp_path) -> None:
    convert_backbone(save(random_state(dtype=dtype), tmp_path), tmp_path / "vit", num_attention_heads=HEADS)
    with safe_open(tmp_path / "vit/model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}  # noqa: SIM118
    assert json.loads((tmp_path / "vit/config.json").read_text())["layer_norm_eps"] == 1e-6


def test_safetensors_and_the_image_processor(tmp_path) -> None:
    state = random_state(dtype=torch.float32, labels=3)
    save_file(state, tmp_path / "model.safetensors")
    convert_backbone(tmp_path / "model.safetensors", tmp_path / "vit", num_attention_heads=HEADS)
    settings = json.loads((tmp_path / "vit/preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "ViTImageProcessor"
    processor = ViTImageProcessor.from_pretrained(tmp_path / "vit")
    image = np.full((30, 30, 3), 255, dtype=np.uint8)
    made = torch.as_tensor(np.array(processor(image)["pixel_values"][0]))
    wanted = ((1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).view(3, 1, 1)
    assert made.shape == (3, 12, 12)
    assert torch.allclose(made, wanted.expand(3, 12, 12), atol=1e-5)
    with torch.no_grad():
        found = load(ViTForImageClassification, tmp_path / "vit", torch.float32)(made[None]).logits
    wanted = logits(state, made[None], HEADS)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(
    ("width", "layout", "kind", "heads"),
    [
        (384, moco_ssl, None, 12),
        (384, moco_linear, None, 12),
        (384, run_of_official_code, None, 12),
        (384, dino_teacher, None, 6),
        (384, plain, "dino", 6),
        (384, plain, "moco", 12),
        (192, plain, None, 3),
        (768, moco_ssl, None, 12),
        (1024, mae, None, 16),
        (1280, mae, None, 16),  # ViT-H: heads of 80
    ],
)
def test_the_number_of_heads(width, layout, kind, heads, tmp_path) -> None:
    state = random_state(width=width, depth=1, mlp_width=8, dtype=torch.float32)
    convert_backbone(save(layout(state), tmp_path), tmp_path / "vit", kind=kind)
    assert json.loads((tmp_path / "vit/config.json").read_text())["num_attention_heads"] == heads


@pytest.mark.parametrize(
    ("width", "asked", "words"),
    [
        (16, None, "number of attention heads of a model of width 16 is unknown"),
        (1088, None, "number of attention heads of a model of width 1088 is unknown"),
        (384, None, "6 heads in timm and DINO but 12 in MoCo v3"),
        (16, 3, "num_attention_heads is 3, expected a divisor of the width 16"),
        (16, 0, "num_attention_heads is 0, expected a divisor"),
    ],
)
def test_unknown_numbers_of_heads(width, asked, words, tmp_path) -> None:
    state = random_state(width=width, depth=1, mlp_width=8, dtype=torch.float32)
    with pytest.raises(ConversionError, match=words):
        convert_backbone(save(state, tmp_path), tmp_path / "vit", num_attention_heads=asked)
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def test_the_report_names_every_key_that_was_left_out(tmp_path) -> None:
    report = convert_backbone(save(moco_ssl(random_state()), tmp_path), tmp_path / "vit", num_attention_heads=HEADS)
    assert set(report.dropped) == set(MOCO_SSL)
    assert "projection head" in report.dropped["module.base_encoder.head.0.weight"]
    text = str(report)
    assert "left out, 1 tensor(s): MoCo v3's predictor: used in pre-training only\n  module.predictor.0.weight" in text
    assert "module.momentum_encoder.blocks.*.attn.qkv.weight (3)" in text
    assert "width 16, 3 blocks, 4 heads, MLP width 40, patch 4, image 12, qkv bias: yes, no head" in text
    assert "only 'state_dict' of the file is used, not epoch, arch" in text


def changed(**tensors: torch.Tensor | None) -> State:
    """A state dict with tensors added, replaced, or removed where None; `__` stands for a dot."""
    state = random_state(labels=3) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(blocks__1__attn__proj__bias=None), r"missing key\(s\): blocks.1.attn.proj.bias"),
        (changed(norm__weight=None, norm__bias=None), r"missing key\(s\): norm.weight, norm.bias"),
        (changed(head__bias=None), r"missing key\(s\): head.bias"),
        (changed(patch_embed__proj__weight=None), r"missing key\(s\): patch_embed.proj.weight. Expected the names of"),
        (changed(blocks__1__ls1__gamma=torch.ones(16)), r"unexpected key\(s\), .*: blocks.1.ls1.gamma"),
        (changed(reg_token=torch.ones(1, 4, 16)), r"unexpected key\(s\), .*: reg_token"),
        (changed(blocks__9__norm1__weight=torch.ones(16)), r"unexpected key\(s\), .*: blocks.9.norm1.weight"),
        (changed(decoder_embed__weight=torch.ones(2), extra=torch.ones(2)), r"unexpected key\(s\), .*: extra"),
        (changed(cls_token=torch.ones(1, 2, 16)), r"cls_token has shape \(1, 2, 16\), expected \(1, 1, 16\)"),
        (changed(pos_embed=torch.ones(1, 9, 16)), r"pos_embed has shape \(1, 9, 16\), expected \(1, 1 \+ n"),
        (changed(pos_embed=torch.ones(1, 0, 16)), r"pos_embed has shape \(1, 0, 16\)"),
        (changed(pos_embed=torch.ones(16)), r"pos_embed has shape \(16,\), expected 3 dimensions"),
        (changed(head__weight=torch.tensor(1.0)), r"head.weight has shape \(\), expected 2 dimensions"),
        (changed(patch_embed__proj__weight=torch.ones(16, 3, 4, 2)), r"\(16, 3, 4, 2\), expected \(16, 3, 4, 4\)"),
        (
            changed(blocks__2__mlp__fc2__weight=torch.ones(16, 41)),
            r"fc2.weight has .*\(16, 41\), expected \(16, 40",
        ),
        (changed(norm__bias=torch.ones(16, dtype=torch.long)), "norm.bias has type torch.int64, expected floats"),
        (changed(norm__bias=torch.full((16,), torch.nan)), "norm.bias in .* contains NaN"),
        (changed(fc_norm__weight=torch.ones(16), norm__weight=None, norm__bias=None), "fine-tuned with mean pooling"),
        (under("module.", changed()) | {"stray": torch.ones(2)}, r"missing key\(s\): patch_embed.proj.weight"),
        (
            moco_ssl(random_state())["state_dict"] | noise("module.queue"),
            r"unexpected key\(s\) .*'moco'.*: module.queue",
        ),
        (under("backbone.", changed()) | noise("loss.center"), r"unexpected key\(s\) in .*'dino'.*: loss.center"),
        (run_of_official_code(random_state())["model"] | noise("enc.head.weight"), r"unexpected .*: enc.head.weight"),
        (run_of_official_code(random_state())["model"] | noise("head.mlp.weight"), r"unexpected .*: head.mlp.weight"),
        ({"state_dict": noise("module.linear.weight", "module.linear.bias")}, "only DINO's linear classifier"),
        ({"model": {"a": 1}, "epoch": 2}, "has no state dict. Its entries are 'a'"),
        ({"optimizer": {}, "epoch": 2}, "has no state dict. Its entries are 'optimizer', 'epoch'"),
        ({"a": torch.ones(2), "epoch": 2}, "'epoch' in .* is a int, expected only tensors"),
        ([torch.ones(2)], "contains a list, expected a dictionary of tensors"),
    ],
)
def test_anything_else_is_refused_by_name(content, words, tmp_path) -> None:
    with pytest.raises(ConversionError, match=words):
        convert_backbone(save(content, tmp_path), tmp_path / "vit", num_attention_heads=HEADS)
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


@pytest.mark.parametrize(
    ("layout", "kind", "words"),
    [
        (moco_ssl, "mae", "of kind 'moco', not 'mae'"),
        (plain, "official", "no key starts with 'enc.'"),
        (mae_with_decoder, "dino", "unexpected key.*: decoder_blocks.0.norm1.weight, decoder_pos_embed, mask_token"),
        (plain, "ibot", "kind is 'ibot', expected one of mae, moco, dino, timm, official"),
    ],
)
def test_a_kind_that_does_not_fit(layout, kind, words, tmp_path) -> None:
    with pytest.raises(ConversionError, match=words):
        convert_backbone(save(layout(random_state()), tmp_path), tmp_path / "vit", kind, num_attention_heads=HEADS)


def test_image_means_must_fit_the_channels(tmp_path) -> None:
    with pytest.raises(ConversionError, match=r"have 3 value\(s\), expected 1"):
        convert_backbone(save(random_state(channels=1), tmp_path), tmp_path / "vit", num_attention_heads=HEADS)


class Code:
    """Runs a command when it is unpickled without protection."""

    def __init__(self, call, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize(("call", "name"), [(os.mkdir, r"\w+\.mkdir"), (shutil.copytree, r"shutil\.copytree")])
def test_no_code_is_run(call, name, tmp_path) -> None:
    (tmp_path / "source").mkdir()
    trap = tmp_path / "code_was_run"
    arguments = (trap,) if call is os.mkdir else (tmp_path / "source", trap)
    path = save({"model": random_state(), "args": Code(call, *map(str, arguments))}, tmp_path)
    with pytest.raises(ConversionError, match=rf"\({name}\), and loading that can run code"):
        convert_backbone(path, tmp_path / "vit", num_attention_heads=HEADS)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap works


def test_damaged_files(tmp_path) -> None:
    path = save(random_state(), tmp_path)
    whole = path.read_bytes()
    for data in (b"", b"garbage", whole[:1000], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ConversionError, match="is not a readable PyTorch file"):
            convert_backbone(path, tmp_path / "vit", num_attention_heads=HEADS)
    (tmp_path / "x.safetensors").write_bytes(b"garbage")
    with pytest.raises(ConversionError, match="is not a readable safetensors file"):
        convert_backbone(tmp_path / "x.safetensors", tmp_path / "vit")
    with pytest.raises(ConversionError, match="does not exist"):
        convert_backbone(tmp_path / "nothing.pth", tmp_path / "vit")
    with pytest.raises(ConversionError, match="is a folder"):
        convert_backbone(tmp_path, tmp_path / "vit")
    assert not (tmp_path / "vit").exists()
