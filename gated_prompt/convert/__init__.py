# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Convert self-supervised checkpoints, and runs of the paper's official code, to the formats used here.

    convert_backbone(checkpoint, folder)            MAE, MoCo v3, DINO, timm -> a transformers ViT
    convert_adapter(checkpoint, folder, pooling)    a run of the official code -> a gated-prompt adapter

Command line: `gated-prompt convert --help`. See docs/convert.md.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import ConversionError
from ..sharing.card import model_card, write_card
from .folder import atomic_folder, check_output_folder
from .layouts import KINDS, split_state_dict
from .official import HEAD_BIAS, attach_adapter, describe, official_adapter, with_head
from .reading import read_state_dict
from .vit import LAYER_NORM_EPS, build_vit, infer_architecture

__all__ = ["KINDS", "Report", "convert_adapter", "convert_backbone"]

StrPath = str | os.PathLike[str]
ORIGIN = "Converted from a run of the paper's official code."
FROM_BACKBONE = "part of the frozen backbone: convert it with `backbone`"


@dataclass(frozen=True)
class Report:
    """What a conversion did, and what it left out.

    `dropped` maps each key of the checkpoint that was left out to the reason. Every other key was converted."""

    source: Path
    folder: Path
    kind: str
    result: str
    dropped: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source} (kind: {self.kind})", f"-> {self.folder}: {self.result}"]
        reasons = list(dict.fromkeys(self.dropped.values()))
        for reason in reasons:
            keys = [key for key, why in self.dropped.items() if why == reason]
            lines += [f"left out, {len(keys)} tensor(s): {reason}", *(f"  {line}" for line in _by_pattern(keys))]
        if not self.dropped:
            lines.append("left out: nothing")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def convert_backbone(
    checkpoint: StrPath,
    folder: StrPath,
    kind: str | None = None,
    num_attention_heads: int | None = None,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
    overwrite: bool = False,
) -> Report:
    """Convert a pre-trained encoder to a `ViTModel`, or to a `ViTForImageClassification` if it has a linear head.

    This writes `config.json`, `model.safetensors` and `preprocessor_config.json`, in the precision of the checkpoint,
    and `conversion.json` with the hashes of both files and what was left out. The architecture is inferred from the
    shapes. `layer_norm_eps` is 1e-6, as in MAE, MoCo v3, DINO and timm.

    Args:
        checkpoint: a file written by `torch.save` (loaded without running code from it), or `.safetensors`.
        folder: output folder, written atomically.
        kind: one of `KINDS`. None means that it is detected.
        num_attention_heads: None means 12 for MoCo v3's ViT-S, 16 for widths 1152 to 1664, else width / 64.
        image_mean: mean per channel of pixels in [0, 1]. The default is ImageNet's, as in MAE, MoCo v3 and DINO.
        image_std: standard deviation per channel.
        overwrite: replace an earlier conversion in `folder`.

    Returns:
        What was found, what was left out and why. Print it.

    Raises:
        ConversionError: the checkpoint cannot be read, its keys or shapes are not those of a ViT, or the folder cannot
            be written to. Nothing is written in these cases.

    Example:
        ```python
        from gated_prompt.convert import convert_backbone

        print(convert_backbone("mae_pretrain_vit_base.pth", "mae-vit-b"))
        ```
    """
    check_output_folder(folder, overwrite)  # fail before the work
    source = Path(checkpoint)
    state = read_state_dict(source)
    encoder = split_state_dict(state, kind)
    found = infer_architecture(encoder, num_attention_heads)
    _check_channels(found.channels, image_mean, image_std)
    model = build_vit(encoder, found)
    from transformers import ViTImageProcessor  # requires Pillow, and warns without torchvision

    processor = ViTImageProcessor(
        size={"height": found.image_size, "width": found.image_size},
        image_mean=list(image_mean),
        image_std=list(image_std),
    )
    with atomic_folder(folder, overwrite) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        record = {
            "checkpoint": source.name,
            "md5": _digest(source, "md5"),
            "sha256": _digest(source, "sha256"),
            "kind": encoder.kind,
            "weights_sha256": _digest(staging / "model.safetensors", "sha256"),
            "left_out": encoder.reasons,
        }
        (staging / "conversion.json").write_text(json.dumps(record, indent=2) + "\n")
    notes = [*encoder.notes, f"layer_norm_eps {LAYER_NORM_EPS}, pixel mean {list(image_mean)}, std {list(image_std)}"]
    if num_attention_heads is None:
        notes.append(
            "the number of heads is the usual one for this width, since it cannot be inferred from the shapes."
        )
    if encoder.kind == "timm" and tuple(image_mean) == tuple(IMAGENET_DEFAULT_MEAN):
        notes.append(
            "this mean is that of MAE, MoCo v3 and DINO. Some of timm's own weights need another (AugReg: 0.5), given "
            "in their config.json."
        )
    return Report(source, Path(folder), encoder.kind, f"{type(model).__name__}, {found}", encoder.reasons, notes)


def convert_adapter(
    checkpoint: StrPath, folder: StrPath, pooling: str | None, base_model: str | None = None, overwrite: bool = False
) -> Report:
    """Convert a run checkpoint of the paper's official code to an adapter folder with prompts and head.

    `convert_backbone` extracts the matching base from the same file. The file does not record which class ran, so
    choose the pooling:

    | official class, `VIT_POOL_TYPE` | `pooling` |
    |---|---|
    | MoCo v3, original | None |
    | MAE, original. Any, imgprompt_pool | "prompts_and_patches" |
    | any, img_pool | "patches" |
    | any, prompt_pool | "prompts" |

    Args:
        checkpoint: the official code's `last_model.pth`, which is its `SSLViT.state_dict()`, in `model` or plain.
        folder: output folder, written atomically.
        pooling: see the table.
        base_model: folder or Hub id of the base, recorded in the adapter.
        overwrite: replace an earlier conversion in `folder`.

    Returns:
        What was found, what was left out and why. Print it.

    Raises:
        ConversionError: the checkpoint is not such a run, a key or shape does not match its encoder, or the folder
            cannot be written to. Nothing is written in these cases.
        ConfigError: `pooling` is unknown.

    Example:
        ```python
        from gated_prompt.convert import convert_adapter

        print(convert_adapter("last_model.pth", "cub", pooling=None, base_model="moco-vit-b"))
        ```
    """
    check_output_folder(folder, overwrite)
    source = Path(checkpoint)
    encoder = split_state_dict(read_state_dict(source), "official")
    found = infer_architecture(encoder, num_heads=1)  # no tensor of the adapter depends on it
    wrapper = encoder.prefix.removesuffix("enc.")
    run = {name.removeprefix(wrapper): tensor for name, tensor in encoder.extras.items()}
    config, tensors, unused = official_adapter(run, found.depth, found.width, pooling)
    model = attach_adapter(build_vit(*with_head(encoder, found, run)), config, tensors, base_model)
    with atomic_folder(folder, overwrite) as staging:
        model.save_pretrained(staging, save_embedding_layers=False)  # "auto" would query the Hub about the base
        write_card(staging, model_card(model, base_model=base_model, notes=ORIGIN))
    dropped = {encoder.prefix + name: FROM_BACKBONE for name in encoder.tensors}
    dropped |= {wrapper + name: reason for name, reason in unused.items()}
    return Report(source, Path(folder), encoder.kind, describe(config, len(run[HEAD_BIAS])), dropped, encoder.notes)


def _digest(file: Path, method: str) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, method).hexdigest()


def _check_channels(channels: int, *values: Sequence[float]) -> None:
    for value in values:
        if len(value) != channels:
            raise ConversionError(
                f"pixel mean and std have {len(value)} value(s), expected {channels}, one per channel of the "
                "checkpoint's patches. Give image_mean and image_std."
            )


def _by_pattern(keys: list[str]) -> list[str]:
    """Return one line for all keys that differ only in the block number."""
    counts = Counter(re.sub(r"(?<=blocks\.)\d+", "*", key) for key in keys)
    return [f"{key} ({count})" if count > 1 else key for key, count in counts.items()]
