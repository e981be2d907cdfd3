# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Build a transformers ViT from an encoder with timm's tensor names, inferring the architecture from the shapes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from ..errors import ConversionError
from .layouts import Encoder

LAYER_NORM_EPS = 1e-6  # in MAE, MoCo v3, DINO and timm. ViTConfig's default is 1e-12
WIDE = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # number of heads of widths whose head dimension is not 64
# timm's names in a block -> transformers' names: of 5.x, then of 4.x where they differ.
BLOCK_PARTS = {
    "norm1": ("layernorm_before",),
    "attn.q": ("attention.q_proj", "attention.attention.query"),
    "attn.k": ("attention.k_proj", "attention.attention.key"),
    "attn.v": ("attention.v_proj", "attention.attention.value"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
}
BLOCKS = ("layers", "encoder.layer")


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Vision Transformer. `labels` is None without a linear head."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch_size: int
    image_size: int
    channels: int
    qkv_bias: bool
    labels: int | None

    def __str__(self) -> str:
        return (
            f"width {self.width}, {self.depth} blocks, {self.heads} heads, MLP width {self.mlp_width}, patch "
            f"{self.patch_size}, image {self.image_size}, qkv bias: {'yes' if self.qkv_bias else 'no'}, "
            + (f"linear head for {self.labels} classes" if self.labels else "no head")
        )


def infer_architecture(encoder: Encoder, num_heads: int | None) -> Architecture:
    """Infer the sizes from the shapes, and check that exactly the expected tensors are there, with the right shapes.

    The shapes do not reveal `num_heads`. None means the usual number for the width.

    Raises:
        ConversionError: a key is missing or unexpected, a shape is wrong, or the number of heads is unknown.
    """
    tensors, prefix = encoder.tensors, encoder.prefix
    if "fc_norm.weight" in tensors and "norm.weight" not in tensors:
        raise ConversionError(
            f"the checkpoint has {prefix}fc_norm and no {prefix}norm: a model fine-tuned with mean pooling (MAE's "
            "fine-tuned files). ViT normalises each token and reads CLS, which would require a norm that was never "
            "trained. Use the pre-trained file (mae_pretrain_vit_base.pth)."
        )
    anchors = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}
    missing = [name for name in anchors if name not in tensors]
    if missing:
        raise ConversionError(
            f"missing key(s): {', '.join(prefix + name for name in missing)}. Expected the names of timm's "
            "VisionTransformer. The checkpoint has "
            f"{_listed(prefix + name for name in sorted(tensors)) or 'no other'}."
        )
    for name, rank in (anchors | {"head.weight": 2}).items():
        if name in tensors and tensors[name].ndim != rank:
            raise ConversionError(f"{prefix}{name} has shape {_shape(tensors[name])}, expected {rank} dimensions")
    width, channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    found = Architecture(
        width=width,
        depth=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        heads=_heads(width, encoder.kind, num_heads),
        mlp_width=len(tensors["blocks.0.mlp.fc1.weight"]),
        patch_size=patch_size,
        image_size=patch_size * _side(tensors["pos_embed"], prefix),
        channels=channels,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        # The official code keeps its head elsewhere, so a head in its encoder is unexpected.
        labels=len(tensors["head.weight"]) if "head.weight" in tensors and encoder.kind != "official" else None,
    )
    _check(tensors, _expected_shapes(found), prefix)
    return found


def build_vit(encoder: Encoder, found: Architecture) -> ViTModel | ViTForImageClassification:
    """Build a `ViTForImageClassification` if the checkpoint has a linear head, else a `ViTModel` without pooler.

    The model has the precision of the checkpoint.
    """
    config = ViTConfig(
        hidden_size=found.width,
        num_hidden_layers=found.depth,
        num_attention_heads=found.heads,
        intermediate_size=found.mlp_width,
        patch_size=found.patch_size,
        image_size=found.image_size,
        num_channels=found.channels,
        qkv_bias=found.qkv_bias,
        layer_norm_eps=LAYER_NORM_EPS,
    )
    if found.labels is not None:
        config.num_labels = found.labels
    with torch.device("meta"):  # saves random initialization, and none can remain
        model = (
            ViTModel(config, add_pooling_layer=False) if found.labels is None else ViTForImageClassification(config)
        )
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in encoder.tensors.values()))
    state = {name: tensor.to(dtype).clone() for name, tensor in _renamed(encoder.tensors, model).items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _heads(width: int, kind: str, asked: int | None) -> int:
    if asked is not None:
        if asked < 1 or width % asked:
            raise ConversionError(f"num_attention_heads is {asked}, expected a divisor of the width {width}")
        return asked
    if width == 384 and kind in ("moco", "official"):  # MoCo v3's ViT-S, the only ViT-S of the official code
        return 12
    if width == 384 and kind == "timm":
        raise ConversionError(
            "a ViT-S (width 384) has 6 heads in timm and DINO but 12 in MoCo v3, and this checkpoint fits both. Give "
            "num_attention_heads, or the kind ('dino', 'moco')."
        )
    if width in WIDE:
        return WIDE[width]
    if width % 64 or width > 1024:
        raise ConversionError(
            f"the number of attention heads of a model of width {width} is unknown and cannot be inferred from the "
            "shapes. Give num_attention_heads."
        )
    return width // 64


def _side(pos_embed: torch.Tensor, prefix: str) -> int:
    positions = pos_embed.shape[1] - 1
    side = math.isqrt(max(positions, 0))
    if side == 0 or side * side != positions:
        raise ConversionError(
            f"{prefix}pos_embed has shape {_shape(pos_embed)}, expected (1, 1 + n * n, width): one position for CLS "
            "and those of a square image. ViT supports no other prefix tokens or image shapes."
        )
    return side


def _expected_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, a.width),
        "pos_embed": (1, 1 + (a.image_size // a.patch_size) ** 2, a.width),
        "patch_embed.proj.weight": (a.width, a.channels, a.patch_size, a.patch_size),
        "patch_embed.proj.bias": (a.width,),
        "norm.weight": (a.width,),
        "norm.bias": (a.width,),
    }
    for block in (f"blocks.{index}." for index in range(a.depth)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (a.width,), f"{block}{norm}.bias": (a.width,)}
        linears = {
            "attn.qkv": (3 * a.width, a.width),
            "attn.proj": (a.width, a.width),
            "mlp.fc1": (a.mlp_width, a.width),
            "mlp.fc2": (a.width, a.mlp_width),
        }
        for linear, shape in linears.items():
            shapes |= {f"{block}{linear}.weight": shape, f"{block}{linear}.bias": shape[:1]}
        if not a.qkv_bias:
            del shapes[f"{block}attn.qkv.bias"]
    if a.labels is not None:
        shapes |= {"head.weight": (a.labels, a.width), "head.bias": (a.labels,)}
    return shapes


def _check(tensors: dict[str, torch.Tensor], expected: dict[str, tuple[int, ...]], prefix: str) -> None:
    """Report all faults at once: a wrong kind of model causes several."""
    faults = []
    if missing := _listed(prefix + name for name in expected if name not in tensors):
        faults.append(f"missing key(s): {missing}")
    if unexpected := _listed(prefix + name for name in sorted(tensors) if name not in expected):
        faults.append(f"unexpected key(s), which ViT does not have: {unexpected}")
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            faults.append(f"{prefix}{name} has shape {_shape(tensors[name])}, expected {shape}")
        elif name in tensors and not tensors[name].is_floating_point():
            faults.append(f"{prefix}{name} has type {tensors[name].dtype}, expected floats")
    if faults:
        raise ConversionError("the encoder is not a plain ViT:" + "".join(f"\n  - {fault}" for fault in faults[:10]))


def _renamed(tensors: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors under the names that `model` has in the installed version of transformers."""
    names = set(model.state_dict())
    body = "vit." if "vit.embeddings.cls_token" in names else ""
    blocks = _pick(names, [f"{body}{path}." for path in BLOCKS], "0.layernorm_before.weight")
    parts = {part: _pick(names, choices, ".weight", f"{blocks}0.") for part, choices in BLOCK_PARTS.items()}
    out = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if name in ("cls_token", "pos_embed"):
            out[f"{body}embeddings." + {"pos_embed": "position_embeddings"}.get(name, name)] = tensor
        elif not stem.startswith("blocks."):
            outer = {"patch_embed.proj": f"{body}embeddings.patch_embeddings.projection", "norm": f"{body}layernorm"}
            out[f"{outer.get(stem, 'classifier')}.{leaf}"] = tensor
        else:
            _, index, part = stem.split(".", 2)
            if part == "attn.qkv":  # rows: all queries, all keys, all values
                out |= {
                    f"{blocks}{index}.{parts[f'attn.{x}']}.{leaf}": rows
                    for x, rows in zip("qkv", tensor.chunk(3), strict=True)
                }
            else:
                out[f"{blocks}{index}.{parts[part]}.{leaf}"] = tensor
    return out


def _pick(names: set[str], choices: Iterable[str], ending: str, start: str = "") -> str:
    for choice in choices:
        if f"{start}{choice}{ending}" in names:
            return choice
    raise ConversionError("this version of transformers uses unknown names for the modules of ViT. Try another one.")


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
