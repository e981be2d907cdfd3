"""SETR-PUP on a ViT: shapes and sizes of the heads, tokens without prompts, what PEFT trains and saves."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import get_peft_model
from torch import nn

import gated_prompt
from gated_prompt import ArchitectureError, GatedPromptConfig, GatedPromptError, find_vision_transformer
from gated_prompt.sharing.backbone import load_backbone
from helpers.models import build, images
from paper.segmentation.setr import (
    AuxiliaryHeads,
    SegmentationOutput,
    SetrPupForSemanticSegmentation,
    UpHead,
    setr_loss,
)


def setr(backbone: Path, blocks: list[int] | None = None) -> SetrPupForSemanticSegmentation:
    torch.manual_seed(0)
    return SetrPupForSemanticSegmentation(str(backbone), 7, blocks or [1, 3], channels=8)


def head_size(width: int, num_classes: int, num_convs: int, channels: int) -> int:
    """LayerNorm, convolutions without bias, batch norms, classifier."""
    convs = 9 * width * channels + (num_convs - 1) * 9 * channels**2 + num_convs * 2 * channels
    return 2 * width + convs + channels * num_classes + num_classes


@pytest.mark.parametrize(
    ("num_convs", "doublings", "factors"),
    [(4, 4, [2, 2, 2, 2]), (2, 4, [4, 4]), (4, 2, [1, 2, 1, 2]), (2, 3, [2, 4]), (4, 5, [2, 2, 2, 4])],
)
def test_head_shapes_and_sizes(num_convs, doublings, factors) -> None:
    head = UpHead(12, 5, num_convs, doublings, channels=6)
    assert head.factors == factors
    assert head(torch.randn(2, 6, 12), (2, 3)).shape == (2, 5, 2 * 2**doublings, 3 * 2**doublings)
    assert sum(p.numel() for p in head.parameters()) == head_size(12, 5, num_convs, 6)


def test_parameters_of_the_papers_heads() -> None:
    """ViT-B/16, 150 classes, 256 channels; counted by hand: 1.77 M in the first convolution, 0.59 M in the others."""
    main, auxiliary = UpHead(768, 150, 4, 4, 256), AuxiliaryHeads(2, 768, 150, 4, 256)
    assert sum(p.numel() for p in main.parameters()) == 1536 + 1769472 + 3 * 589824 + 4 * 512 + 150 * 257
    assert sum(p.numel() for p in auxiliary.parameters()) == 2 * (1536 + 1769472 + 589824 + 2 * 512 + 150 * 257)


def test_head_is_norm_convs_upsamplings_classifier() -> None:
    """Compare with the order described in the paper: upsampling after every convolution, then the classifier."""
    torch.manual_seed(0)
    head = UpHead(6, 5, 4, 4, channels=4).double().eval()
    for conv in head.convs:
        conv[1].running_mean.uniform_(-1, 1), conv[1].running_var.uniform_(0.5, 2)
    nn.init.normal_(head.classifier.bias)
    tokens = torch.randn(2, 6, 6, dtype=torch.float64)
    maps = F.layer_norm(tokens, (6,), head.norm.weight, head.norm.bias, 1e-6).transpose(1, 2).reshape(2, 6, 2, 3)
    for conv in head.convs:
        maps = F.relu(conv[1](F.conv2d(maps, conv[0].weight, padding=1)))
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(head(tokens, (2, 3)), head.classifier(maps))


def test_output_has_the_size_of_the_image(backbone) -> None:
    model = setr(backbone).eval()  # patches of 8, made for 32 x 32
    for height, width in ((32, 32), (64, 48), (37, 50), (5, 70)):
        output = model(torch.randn(2, 3, height, width))
        assert output.logits.shape == (2, 7, height, width)
        assert output.auxiliary_logits is None
    output = model.train()(torch.randn(2, 3, 40, 24))
    assert [tuple(each.shape) for each in output.auxiliary_logits] == [(2, 7, 40, 24)] * 2


def test_sides_that_are_no_multiple_of_the_patch_are_padded(backbone) -> None:
    model, pixels = setr(backbone).eval(), torch.randn(1, 3, 37, 50)
    whole = model(F.pad(pixels, (0, 6, 0, 3))).logits
    assert torch.equal(model(pixels).logits, whole[:, :, :37, :50])


def test_patches_of_14_end_at_the_size_of_the_image(tmp_path) -> None:
    build("Dinov2Model", "Dinov2Config", patch_size=14, image_size=28).save_pretrained(tmp_path)
    model = setr(tmp_path).eval()
    assert model.decode_head.factors == [2, 2, 2, 2]
    assert model(torch.randn(1, 3, 40, 56)).logits.shape == (1, 7, 40, 56)


FAMILIES = {
    "vit": ("ViTModel", "ViTConfig", {}),
    "deit": ("DeiTModel", "DeiTConfig", {}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}),
    "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"num_register_tokens": 3}),
    "beit": ("BeitModel", "BeitConfig", {"use_relative_position_bias": True}),
    "ijepa": ("IJepaModel", "IJepaConfig", {}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", {}),
}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_read_patch_tokens_without_prompts(family, deep, tmp_path) -> None:
    name, config, settings = FAMILIES[family]
    build(name, config, **settings).save_pretrained(tmp_path)
    prompts = GatedPromptConfig(num_virtual_tokens=4, gate_init=0.5, deep=deep, temperature=False)
    model = get_peft_model(setr(tmp_path, [1, 3]), prompts).train()
    base = model.get_base_model()
    blocks, read = {}, {}
    for index, block in enumerate(find_vision_transformer(base).blocks):
        block.register_forward_hook(
            lambda m, a, out, i=index: blocks.update({i: out[0] if isinstance(out, tuple) else out})
        )
    for head in ("decode_head", "auxiliary_head"):
        getattr(base, head).register_forward_pre_hook(lambda m, args, h=head: read.update({h: args[0]}))
    model(images(size=32))
    # Gated, the prompts leave the block among its tokens; deep, each block has its own.
    assert blocks[0].shape[1] == base.num_prefix_tokens + (0 if deep else 4) + 16
    for block, tokens in zip((1, 3), read["auxiliary_head"], strict=True):  # counted from 1
        assert torch.equal(tokens, blocks[block - 1][:, -16:])
    assert read["decode_head"].shape == (2, 16, 32)
    norm = getattr(base.backbone, "layernorm", nn.Identity())  # CLIP's final norm is for the CLS token alone
    torch.testing.assert_close(read["decode_head"], norm(blocks[3])[:, -16:])


def test_prompts_reach_the_map_and_can_be_switched_off(backbone) -> None:
    base = setr(backbone).eval()
    wanted = base(images()).logits.detach()
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=4, gate_init=0.0)).eval()
    assert not torch.allclose(model(images()).logits, wanted)
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(images()).logits, wanted)


def test_training_moves_prompts_and_heads_alone(backbone) -> None:
    model = get_peft_model(setr(backbone), GatedPromptConfig(num_virtual_tokens=4, gate_init=0.0)).train()
    assert model.active_peft_config.modules_to_save == ["decode_head", "auxiliary_head"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 4 * 32 + 3 + 4 + head_size(32, 7, 4, 8) + 2 * head_size(32, 7, 2, 8)
    before = copy.deepcopy(model.state_dict())
    labels = torch.randint(0, 7, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 100.0)
    setr_loss(model(images()), labels, 255).backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in moved if ".backbone." in name or "original_module" in name]
    for part in ("tokens", "gate_logits", "temperatures"):
        assert any(f"gated_prompt_{part}" in name for name in moved)
    assert sum("running_mean" in name for name in moved) == 4 + 2 + 2
    still = {n for n, p in model.named_parameters() if p.requires_grad} - moved
    assert still == set()


def test_adapter_holds_the_heads(backbone, tmp_path) -> None:
    model = get_peft_model(setr(backbone), GatedPromptConfig(num_virtual_tokens=4)).train()
    model(images())  # running statistics
    model.save_pretrained(tmp_path)
    wanted = model.eval()(images()).logits
    torch.manual_seed(5)
    other = SetrPupForSemanticSegmentation(str(backbone), 7, [1, 3], channels=8)
    loaded = gated_prompt.load(other, tmp_path).eval()
    assert torch.equal(loaded(images()).logits, wanted)
    assert loaded.active_peft_config.base_model_name_or_path == str(backbone)


def test_whole_model_saves_and_loads(backbone, tmp_path) -> None:
    model = setr(backbone).eval()
    model.save_pretrained(tmp_path)
    loaded = SetrPupForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(images()).logits, model(images()).logits)


def test_mae_encoder_neither_hides_nor_shuffles_patches(tmp_path) -> None:
    mae = build("ViTMAEForPreTraining", "ViTMAEConfig", decoder_hidden_size=32, decoder_num_attention_heads=4)
    mae.save_pretrained(tmp_path)
    encoder = load_backbone(str(tmp_path))
    assert type(encoder) is transformers.ViTModel
    first, second = (encoder(images()).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (2, 17, 32)
    own = mae.vit
    own.config.mask_ratio = 0.0
    output = own(images(), noise=torch.arange(16.0).expand(2, 16)).last_hidden_state  # in order, none masked
    torch.testing.assert_close(first, output)


def test_loss_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0] = 1.0
    auxiliary = torch.zeros(1, 2, 1, 4)
    labels = torch.tensor([[[0, 1, 255, 255]]])
    loss = setr_loss(SegmentationOutput(logits=logits, auxiliary_logits=(auxiliary, auxiliary)), labels, 255)
    at_0 = torch.log(1 + torch.exp(torch.tensor(-1.0)))
    wanted = (at_0 + (at_0 + 1)) / 4 + 2 * 0.4 * 2 * torch.log(torch.tensor(2.0)) / 4
    torch.testing.assert_close(loss, wanted)


def test_loss_of_a_crop_without_labels_is_0() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = setr_loss(SegmentationOutput(logits=logits, auxiliary_logits=(logits,)), torch.full((1, 3, 3), 255), 255)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_loss_needs_the_output_of_train_mode() -> None:
    with pytest.raises(GatedPromptError, match="output of a model in train mode"):
        setr_loss(SegmentationOutput(logits=torch.zeros(1, 2, 1, 1)), torch.zeros(1, 1, 1).long(), 255)


@pytest.mark.parametrize("blocks", [[], [0], [4], [5, 9]])
def test_auxiliary_blocks_must_be_there(backbone, blocks) -> None:
    with pytest.raises(GatedPromptError, match=r"auxiliary_blocks are \[.*\]. Give one or more of 1 to 3"):
        SetrPupForSemanticSegmentation(str(backbone), 7, blocks)


def test_backbones_that_do_not_fit(tmp_path) -> None:
    with pytest.raises(GatedPromptError, match="cannot load --backbone 'no/such'"):
        load_backbone("no/such")
    settings = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "patch_size": 4}
    transformers.SwinModel(transformers.SwinConfig(window_size=4, **settings)).save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError):
        setr(tmp_path)
