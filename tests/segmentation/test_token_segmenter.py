"""`heads.TokenSegmenter`: what it reads, prompts below it, training, files, mixed batches."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

import gated_prompt
from gated_prompt import ConfigError, GatedPromptConfig, GatedPromptError
from gated_prompt.architecture import find_vision_transformer
from gated_prompt.errors import ArchitectureError, UnsupportedOperationError
from gated_prompt.finetune.methods import add_lora
from gated_prompt.heads import TokenSegmenter
from helpers.families import CASES, Case, images

NAMES = ("DINOv3ViTModel", "Dinov2Model", "SiglipVisionModel", "ViTModel", "IJepaModel", "BeitModel")
BACKBONES = [case for case in CASES if case.name in NAMES]
NORMS = ("norm", "layernorm", "post_layernorm")  # of the last tokens
families = pytest.mark.parametrize("case", BACKBONES, ids=[case.name for case in BACKBONES])
DINOV2 = next(case for case in CASES if case.name == "Dinov2Model")
KINDS = {
    "zero_start": {"deep": True, "zero_start": True, "temperature": False},
    "gated": {"gate_init": 0.0},
    "deep": {"deep": True, "temperature": False},
}


def build(case: Case, blocks: list[int] | None = None, head: str = "linear") -> TokenSegmenter:
    backbone = case.build()
    torch.manual_seed(5)
    return TokenSegmenter(backbone, ["sky", "road", "car"], blocks, head).eval()


def adapted(kind: str, seed: int = 3, **more: object) -> nn.Module:
    """Prompts of a kind with values that matter, below a segmenter of blocks 0 and 2 of Dinov2Model."""
    model = get_peft_model(
        build(DINOV2, [0, 2]), GatedPromptConfig(num_virtual_tokens=3, **KINDS[kind], **more)
    ).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gated_prompt_tokens" in name or "head_gates" in name:
                parameter.normal_()
    return model


@torch.no_grad()
@families
def test_it_is_a_linear_map_of_the_tokens(case: Case) -> None:
    """Against hooks on the blocks, image by image and patch by patch."""
    model = build(case, [0, 2])
    seen: dict[int, torch.Tensor] = {}
    for index in (0, 2):
        block = find_vision_transformer(model.backbone).blocks[index]
        block.register_forward_hook(lambda m, a, out, i=index: seen.update({i: out[0] if type(out) is tuple else out}))
    pixels = images()["pixel_values"]
    logits = model(pixels).logits
    norms = [m for n, m in model.backbone.named_modules() if n.rpartition(".")[2] in NORMS and n.count(".") < 2]
    norm = norms[0] if norms else nn.Identity()
    side = pixels.shape[-1] // model.patch_size
    assert logits.shape == (len(pixels), 3, side, side)
    for row in range(side):
        for column in range(side):
            token = [seen[index][:, case.prefix + row * side + column] for index in (0, 2)]
            head = model.classifier
            wanted = torch.cat([norm(one) for one in token], -1) @ head.weight.T + head.bias
            torch.testing.assert_close(logits[:, :, row, column], wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_images_that_are_not_square() -> None:
    model = build(DINOV2, [1])
    pixels = torch.randn(1, 3, 2 * model.patch_size, 5 * model.patch_size)
    assert model(pixels).logits.shape == (1, 3, 2, 5)
    with pytest.raises(GatedPromptError, match="Both sides must be multiples of the patch size"):
        model(pixels[..., :-1])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_never_read(kind: str) -> None:
    """The map has a logit for each patch, whatever the number of prompts; without the adapter it is the base's."""
    pixels = images()["pixel_values"]
    base = build(DINOV2, [0, 2])
    wanted = base(pixels).logits
    model = adapted(kind)
    found = model(pixels).logits
    assert found.shape == wanted.shape and not torch.allclose(found, wanted, atol=1e-2)
    assert model.peft_config["default"].modules_to_save == ["classifier"]
    with model.disable_adapter():
        assert torch.equal(model(pixels).logits, wanted)
    assert torch.equal(model.unload()(pixels).logits, wanted)
    gated_prompt.check(adapted(kind), pixel_values=pixels)


@torch.no_grad()
def test_zero_start_begins_as_the_base() -> None:
    pixels = images()["pixel_values"]
    model = get_peft_model(build(DINOV2, [0, 2]), GatedPromptConfig(num_virtual_tokens=3, **KINDS["zero_start"]))
    assert torch.equal(model.eval()(pixels).logits, build(DINOV2, [0, 2])(pixels).logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_above_the_highest_do_not_run(kind: str) -> None:
    """`read_from` gives the same as a backbone that ends there; below what is read it is refused."""
    pixels = images()["pixel_values"]
    whole = adapted(kind, read_from=2)
    ran: list[int] = []
    vit = find_vision_transformer(whole.base_model.model)
    for index, block in enumerate(vit.blocks):
        block.attention.register_forward_hook(lambda *_, i=index: ran.append(i))
    found = whole(pixels).logits
    assert ran == [0, 1, 2]
    short = DINOV2.build()
    short.encoder.layer = short.encoder.layer[:3]
    torch.manual_seed(5)
    other = get_peft_model(
        TokenSegmenter(short, ["sky", "road", "car"], [0, 2]).eval(),
        GatedPromptConfig(num_virtual_tokens=3, **KINDS[kind]),
    )
    other.load_state_dict(whole.state_dict(), strict=False)
    assert torch.equal(other.eval()(pixels).logits, found)
    low = get_peft_model(
        build(DINOV2, [0, 3]), GatedPromptConfig(num_virtual_tokens=3, read_from=1, **KINDS[kind])
    ).eval()
    with pytest.raises(UnsupportedOperationError, match="block 3 is to be read, but did not run"):
        low(pixels)


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_it_is_trained_saved_and_loaded(head: str, tmp_path: Path) -> None:
    model = get_peft_model(build(DINOV2, [0, 2], head), GatedPromptConfig(num_virtual_tokens=3, **KINDS["zero_start"]))
    pixels = images()["pixel_values"]
    labels = torch.tensor([0, 2])[:, None, None].repeat(1, 20, 24)
    labels[:, :2] = 255
    args = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=12,
        learning_rate=0.01,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        label_names=["labels"],
        disable_tqdm=True,
        gradient_checkpointing=True,
    )
    data = [{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]
    with torch.no_grad():
        before = model.eval()(pixel_values=pixels, labels=labels)
    large = F.interpolate(before.logits, (20, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(before.loss, F.cross_entropy(large, labels, ignore_index=255))
    prompts = next(p for n, p in model.named_parameters() if "head_gates" in n)
    Trainer(model=model, args=args, train_dataset=data).train()
    with torch.no_grad():
        after = model.eval()(pixel_values=pixels, labels=labels)
        assert after.loss < before.loss and bool((prompts != 0).any())
        gated_prompt.save(model, tmp_path / "adapter")
        loaded = gated_prompt.load(build(DINOV2, [0, 2], head), tmp_path / "adapter").eval()
        assert torch.equal(loaded(pixels).logits, after.logits)


@torch.no_grad()
def test_two_adapters_in_one_batch(tmp_path: Path) -> None:
    """Also of other kinds and numbers of prompts, each with its own head."""
    pixels = images()["pixel_values"][:2]
    alone = []
    for number, kind in enumerate(KINDS):
        model = adapted(kind, seed=number)
        model.base_model.model.classifier.modules_to_save["default"].weight.normal_()
        gated_prompt.save(model, tmp_path / kind)
        alone.append(model(pixels[number % 2][None]).logits[0])
    model = gated_prompt.load(build(DINOV2, [0, 2]), tmp_path / "zero_start", "zero_start").eval()
    for kind in ("gated", "deep"):
        gated_prompt.load(model, tmp_path / kind, kind)
    mixed = model(pixels[[0, 1, 0]], adapter_names=list(KINDS)).logits
    torch.testing.assert_close(mixed, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_other_methods_and_copies() -> None:
    model = add_lora(build(DINOV2, [0, 2]), 2)
    model(images()["pixel_values"]).logits.square().sum().backward()
    assert any(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)
    base = build(DINOV2, [0, 2])
    copied = copy.deepcopy(base)
    with torch.no_grad():
        assert torch.equal(copied(images()["pixel_values"]).logits, base(images()["pixel_values"]).logits)


def test_what_cannot_be_read_is_refused() -> None:
    for blocks in ([], [2, 0], [0, 0], [9], [-1]):
        with pytest.raises(ConfigError, match="List blocks of 0 to 3 once each"):
            build(DINOV2, blocks)
    with pytest.raises(ConfigError, match="head is 'mlp'"):
        build(DINOV2, [0], "mlp")
    packed = next(case for case in CASES if case.name == "Siglip2VisionModel")
    with pytest.raises(ArchitectureError, match="does not cut images into square patches"):
        build(packed)
