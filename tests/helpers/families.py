# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Every Vision Transformer family as tiny random models: what the tests of `test_families.py` run over.

What a case says of its model (prefix tokens, tokens that its head reads, whether `pooling` makes sense) is written
down by hand here, so that it can contradict what the package detects.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

from .timm_like import TimmLikeViT

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
DEPTH, WIDTH, SIZE, PATCH, LABELS = 4, 32, 32, 8, 5
TINY = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 64}
PIXELS = {"image_size": SIZE, "patch_size": PATCH}
STRIDE = {"encoder_stride": PATCH}
TEXT = {**TINY, "num_hidden_layers": 2, "vocab_size": 20, "max_position_embeddings": 8, "projection_size": WIDTH}
TEXT |= {"bos_token_id": 0, "eos_token_id": 19, "pad_token_id": 1}
STAGES = {"out_features": ["stage1", "stage4"]}
FOUR = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8, "auxiliary_num_convs": 1}
IN_BLOCK, SHARED = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
Inputs = dict[str, torch.Tensor]


def images(size: int = SIZE) -> Inputs:
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))}


def masked(size: int = SIZE) -> Inputs:
    mask = torch.zeros(2, (size // PATCH) ** 2, dtype=torch.bool)
    mask[:, ::3] = True
    return images(size) | {"bool_masked_pos": mask}


def noisy(size: int = SIZE) -> Inputs:
    """MAE drops random patches; the noise that chooses them is an input."""
    return images(size) | {"noise": torch.rand(2, (size // PATCH) ** 2, generator=torch.Generator().manual_seed(2))}


def captioned(size: int = SIZE) -> Inputs:
    return images(size) | {"input_ids": torch.tensor([[0, 5, 6, 7, 19], [0, 9, 3, 2, 19]])}


def packed(size: int = SIZE) -> Inputs:
    """SigLIP 2: sequences of patches, the second image smaller and padded."""
    length = (size // PATCH) ** 2
    pixels = torch.randn(2, length, 3 * PATCH * PATCH, generator=torch.Generator().manual_seed(1))
    shapes = torch.tensor([[size // PATCH, size // PATCH], [size // PATCH - 1, 3]])
    mask = torch.arange(length)[None] < shapes.prod(1, keepdim=True)
    return {"pixel_values": pixels, "pixel_attention_mask": mask.int(), "spatial_shapes": shapes}


def packed_captioned(size: int = SIZE) -> Inputs:
    return packed(size) | {"input_ids": captioned()["input_ids"]}


@dataclass(frozen=True)
class Case:
    """One model class of one family.

    `prefix`: tokens before the patches; `reads`: tokens after the last block that its output depends on, "all" or
    slots and "patches" (see `test_what_the_output_reads`); `read_before`, `head_before`: a version of transformers and
    what was read and trained before it; `read_from`: name of the output that this is about;
    `pools`: whether `pooling` is allowed; `head`: what is trained beside the prompts; `larger`: keyword arguments
    with which it takes larger images, None where it does not; `keeps`: fraction of the patches that reach the blocks;
    `last`: the last block whose output is used (BEiT's segmentation skips the very last); `since`: the first version
    of transformers with which it works; `silent`: from which version on, and up to which, its output holds neither
    hidden states nor attentions.
    """

    family: str
    name: str
    config: str
    prefix: int
    reads: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    read_from: str = "logits"
    pools: bool = False
    head: tuple[str, ...] = ()
    inputs: Callable[..., Inputs] = images
    larger: dict[str, Any] | None = field(default_factory=lambda: {"interpolate_pos_encoding": True})
    keeps: float = 1.0
    last: int = DEPTH - 1
    towers: bool = False
    note: str = ""
    since: tuple[int, int] = (4, 57)
    silent: tuple[tuple[int, int], tuple[int, int]] | None = None
    read_before: tuple[tuple[int, int], tuple[str, ...]] | None = None
    head_before: tuple[tuple[int, int], tuple[str, ...]] | None = None

    @property
    def id(self) -> str:
        return self.name + (f"-{self.note}" if self.note else "")

    @property
    def works(self) -> bool:
        return self.since <= VERSION

    @property
    def reads_here(self) -> set[str]:
        return set(self.read_before[1] if self.read_before and self.read_before[0] > VERSION else self.reads)

    @property
    def head_here(self) -> tuple[str, ...]:
        return self.head_before[1] if self.head_before and self.head_before[0] > VERSION else self.head

    @property
    def reports(self) -> bool:
        return self.silent is None or not self.silent[0] <= VERSION < self.silent[1]

    def build(self, attention: str = "sdpa") -> nn.Module:
        """The model in eval mode, the same weights every time; fresh biases and position embeddings are not zero."""
        torch.manual_seed(0)
        model = self._timm_like() if self.config == "" else self._transformers(attention)
        noise = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape, generator=noise) * (0.2 if parameter.ndim > 1 else 0.1)
        return model.eval()

    def _timm_like(self) -> nn.Module:
        return TimmLikeViT(depth=DEPTH, width=WIDTH, image_size=SIZE, patch_size=PATCH, labels=LABELS, **self.settings)

    def _transformers(self, attention: str) -> nn.Module:
        vision = {**TINY, **PIXELS, **self.settings}
        config_class = getattr(transformers, self.config)
        if self.towers:
            config = config_class(text_config=TEXT, vision_config=vision, projection_dim=WIDTH)
        elif "vision_config" in getattr(config_class, "sub_configs", {}):
            config = config_class(vision_config=vision, num_labels=LABELS)
        else:
            config = config_class(**{"num_labels": LABELS, **vision})
        config._attn_implementation = attention
        return getattr(transformers, self.name)(config)

    @property
    def takes_larger(self) -> bool:
        """Whether this class takes larger images in the installed version of transformers."""
        if self.larger is None or not self.works:
            return False
        parameters = inspect.signature(getattr(transformers, self.name).forward).parameters
        return "kwargs" in parameters or all(name in parameters for name in self.larger)

    def run(self, model: nn.Module, size: int = SIZE, **kwargs: Any) -> Any:
        inputs = self.inputs(size)
        if self.config == "":
            return {"logits": model(inputs["pixel_values"])}
        return model(**inputs, **kwargs)

    def tokens(self, size: int = SIZE) -> int:
        """Tokens in the blocks, without prompts."""
        return self.prefix + int((size // PATCH) ** 2 * self.keeps)


SLOT0, PATCHES, ALL = ("slot 0",), ("patches",), ("all",)
STATE = {"read_from": "last_hidden_state", "reads": ALL}
MAPS = {"read_from": "feature_maps", "reads": PATCHES}
POOLED = {"read_from": "pooler_output"}
CLASSIFIER = {"head": ("classifier",)}


def _timm(note: str, prefix: int, reads: tuple[str, ...], **kwargs: Any) -> Case:
    head = kwargs.pop("head", ("head",))
    pools = kwargs.pop("pools", True)
    return Case("timm", "timm-like", "", prefix, reads, kwargs, pools=pools, head=head, larger=None, note=note)


def _registers(name: str, config: str, prefix: int) -> list[Case]:
    count = {"num_register_tokens": prefix - 1} if prefix > 1 else {}
    common = {"config": config, "prefix": prefix, "larger": {}}
    family = "DINOv2 with registers" if prefix > 1 else "DINOv2"
    return [
        Case(family, f"{name}Model", settings=count, pools=True, **POOLED, reads=SLOT0, **common),
        Case(
            family,
            f"{name}ForImageClassification",
            settings=count,
            reads=SLOT0 + PATCHES,
            pools=True,
            **CLASSIFIER,
            **common,
        ),
        Case(family, f"{name}Backbone", settings=count | STAGES, **MAPS, **common),
        Case(
            family,
            f"{name}Backbone",
            settings=count | STAGES | {"reshape_hidden_states": False},
            read_from="feature_maps",
            reads=ALL,
            note="flat",
            **common,
        ),
    ]


def _beit(family: str, name: str, config: str) -> list[Case]:
    common = {"family": family, "config": config, "prefix": 1}
    cls = {"use_mean_pooling": False}
    heads, before = ("decode_head", "auxiliary_head"), ("fpn1", "fpn2", "decode_head", "auxiliary_head")
    # Data2VecVisionModel has no pooler unless asked for at construction.
    mean, token = (POOLED | {"reads": PATCHES}, POOLED | {"reads": SLOT0}) if name == "Beit" else (STATE, STATE)
    return [
        Case(name=f"{name}Model", settings=IN_BLOCK, note="mean", **mean, **common),
        Case(name=f"{name}Model", settings=SHARED | cls, pools=True, note="shared-cls", **token, **common),
        Case(
            name=f"{name}ForImageClassification", settings=IN_BLOCK, reads=PATCHES, **CLASSIFIER, note="mean", **common
        ),
        Case(
            name=f"{name}ForImageClassification",
            settings=IN_BLOCK | SHARED | {"use_absolute_position_embeddings": True} | cls,
            reads=SLOT0,
            pools=True,
            **CLASSIFIER,
            note="cls",
            **common,
        ),
        Case(
            name=f"{name}ForSemanticSegmentation",
            settings=IN_BLOCK | FOUR,
            reads=PATCHES,
            head=("fpn", *heads) if name == "Beit" else before,
            head_before=((5, 9), before) if name == "Beit" else None,
            last=DEPTH - 2,
            larger=None,
            **common,
        ),
    ]


CASES: list[Case] = [
    Case("ViT", "ViTModel", "ViTConfig", 1, SLOT0, read_from="pooler_output", pools=True),
    Case("ViT", "ViTForImageClassification", "ViTConfig", 1, SLOT0, pools=True, **CLASSIFIER),
    Case(
        "ViT",
        "ViTForMaskedImageModeling",
        "ViTConfig",
        1,
        PATCHES,
        STRIDE,
        read_from="reconstruction",
        inputs=masked,
        larger=None,
        head=("decoder",),
    ),
    Case("DeiT", "DeiTModel", "DeiTConfig", 2, SLOT0, read_from="pooler_output", pools=True),
    Case("DeiT", "DeiTForImageClassification", "DeiTConfig", 2, SLOT0, pools=True, **CLASSIFIER),
    Case(
        "DeiT",
        "DeiTForImageClassificationWithTeacher",
        "DeiTConfig",
        2,
        ("slot 0", "slot 1"),
        pools=True,
        head=("cls_classifier", "distillation_classifier"),
    ),
    Case(
        "DeiT",
        "DeiTForMaskedImageModeling",
        "DeiTConfig",
        2,
        PATCHES,
        STRIDE,
        head=("decoder",),
        read_before=((5, 9), ("slot 1", "some patches")),  # the first and the last token were cut off
        read_from="reconstruction",
        inputs=masked,
        larger=None,
    ),
    Case("ViT-MAE", "ViTMAEModel", "ViTMAEConfig", 1, **STATE, pools=True, inputs=noisy, keeps=0.25),
    Case(
        "ViT-MAE",
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        1,
        ALL,
        {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
        | {"decoder_intermediate_size": 16},
        inputs=noisy,
        head=("decoder",),
        keeps=0.25,
    ),
    Case("ViT-MSN", "ViTMSNModel", "ViTMSNConfig", 1, **STATE, pools=True),
    Case("ViT-MSN", "ViTMSNForImageClassification", "ViTMSNConfig", 1, SLOT0, pools=True, **CLASSIFIER),
    *_registers("Dinov2", "Dinov2Config", 1),
    *_registers("Dinov2WithRegisters", "Dinov2WithRegistersConfig", 3),
    Case(
        "DINOv3",
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        4,
        SLOT0,
        {"num_register_tokens": 3},
        read_from="pooler_output",
        pools=True,
        larger={},
    ),
    Case(
        "DINOv3",
        "DINOv3ViTBackbone",
        "DINOv3ViTConfig",
        4,
        settings={"num_register_tokens": 3} | STAGES,
        larger={},
        since=(5, 4),
        **MAPS,
    ),
    *_beit("BEiT", "Beit", "BeitConfig"),
    Case(
        "BEiT",
        "BeitForMaskedImageModeling",
        "BeitConfig",
        1,
        PATCHES,
        SHARED | {"vocab_size": 20, "use_mask_token": True},
        inputs=masked,
        head=("layernorm", "lm_head"),
    ),
    Case("BEiT", "BeitBackbone", "BeitConfig", 1, settings=IN_BLOCK | STAGES, larger={}, **MAPS),
    *_beit("Data2Vec-Vision", "Data2VecVision", "Data2VecVisionConfig"),
    Case("I-JEPA", "IJepaModel", "IJepaConfig", 0, **STATE),
    Case("I-JEPA", "IJepaForImageClassification", "IJepaConfig", 0, ALL, **CLASSIFIER),
    Case("CLIP", "CLIPVisionModel", "CLIPVisionConfig", 1, SLOT0, read_from="pooler_output", pools=True),
    Case("CLIP", "CLIPVisionModelWithProjection", "CLIPVisionConfig", 1, SLOT0, read_from="image_embeds", pools=True),
    Case("CLIP", "CLIPForImageClassification", "CLIPConfig", 1, PATCHES, **CLASSIFIER),
    Case(
        "CLIP",
        "CLIPModel",
        "CLIPConfig",
        1,
        SLOT0,
        read_from="logits_per_image",
        pools=True,
        inputs=captioned,
        towers=True,
        silent=((5, 0), (5, 9)),
    ),
    Case("SigLIP", "SiglipVisionModel", "SiglipVisionConfig", 0, ALL, read_from="pooler_output"),
    Case("SigLIP", "SiglipForImageClassification", "SiglipConfig", 0, ALL, **CLASSIFIER),
    Case(
        "SigLIP",
        "SiglipModel",
        "SiglipConfig",
        0,
        ALL,
        read_from="logits_per_image",
        inputs=captioned,
        towers=True,
        silent=((4, 57), (5, 9)),
    ),
    Case(
        "SigLIP 2",
        "Siglip2VisionModel",
        "Siglip2VisionConfig",
        0,
        ALL,
        {"num_patches": 16},
        read_from="pooler_output",
        inputs=packed,
        larger={},
    ),
    Case(
        "SigLIP 2",
        "Siglip2ForImageClassification",
        "Siglip2Config",
        0,
        ALL,
        {"num_patches": 16},
        inputs=packed,
        larger={},
        **CLASSIFIER,
    ),
    Case(
        "SigLIP 2",
        "Siglip2Model",
        "Siglip2Config",
        0,
        ALL,
        {"num_patches": 16},
        read_from="logits_per_image",
        inputs=packed_captioned,
        larger={},
        towers=True,
        silent=((4, 57), (5, 9)),
    ),
    _timm("cls", 1, SLOT0),
    _timm("registers-qk-norm", 3, SLOT0, registers=2, qk_norm=True),
    _timm("distilled", 2, ("slot 0", "slot 1"), distilled=True, head=("head", "head_dist")),
    _timm("rotary", 3, SLOT0, registers=2, rotary=True),
    _timm("average", 1, PATCHES, global_pool="avg", pools=False),
]
HERE = [case for case in CASES if case.works]
