# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One adapter in memory, and whether it fits there: the backbone and the limits, before anything is computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from ..errors import AdapterMismatchError
from ..files.adapter_file import stamp_of
from ..files.folder import PENDING_NAME
from ..predictor import FILE
from ..sharing.card import last_part
from .cache import Loaded, Stamp
from .contents import PROBE, Files


@dataclass(eq=False, kw_only=True)
class Resident(Loaded):
    """An adapter on a model of PyTorch, as `AdapterPool.hold` returns it.

    Attributes:
        key: its name on the model, which is that of the base for a probe, since a probe has no prompts.
        weight: of its head, (K, F). None means that logits are what the head would read, (F,).
        bias: of its head, (K,).
        blocks: after which the head reads. None means the output of the backbone.
    """

    key: str
    weight: Tensor | None
    bias: Tensor | None
    blocks: tuple[int, ...] | None


def stamp_of_folder(folder: Path) -> Stamp:
    """A value that changes when another adapter replaces this one."""
    return tuple(
        stamp_of(folder / name) for name in (CONFIG_NAME, PENDING_NAME, SAFETENSORS_WEIGHTS_NAME, PROBE, FILE)
    )


class Limits(NamedTuple):
    """The backbone's name (None if it is not compared) and number of blocks, and the largest side of images."""

    backbone_name: str | None
    blocks: int
    image_side: int


def blocks_read(folder: Path, files: Files, limits: Limits) -> tuple[int, ...] | None:
    """The blocks of this backbone after which the head reads. None means its output.

    Raises:
        GatedPromptError: the adapter was trained on another backbone, or asks for more than the limits.
    """
    trained_on, predictor = files.trained_on, files.predictor
    if limits.backbone_name is not None and trained_on not in ("", last_part(limits.backbone_name)):
        raise AdapterMismatchError(
            f"the adapter in {folder} was trained on {trained_on!r}, the backbone here is "
            f"{last_part(limits.backbone_name)!r}. If it is the same model under another name, change "
            f"base_model_name_or_path in its {CONFIG_NAME}."
        )
    blocks, depth = predictor.blocks, limits.blocks
    ends_after = predictor.base.get("num_hidden_layers", depth)
    if files.config is None and ends_after < depth:  # a probe reads here what it read where the backbone ended
        blocks = [ends_after - 1] if blocks is None else blocks
    elif ends_after != depth:
        raise AdapterMismatchError(
            f"the adapter in {folder} was trained on a backbone with num_hidden_layers={ends_after}, as its "
            f"{FILE} says, unlike the one here. Serve it separately."
        )
    if blocks is not None and max(blocks) >= depth:
        raise AdapterMismatchError(
            f"the head in {folder} reads block {max(blocks)}, and the last one here is {depth - 1}"
        )
    side = max(predictor.preparation.get(name, 0) for name in ("size", "resize"))
    if side > limits.image_side:
        raise AdapterMismatchError(
            f"{FILE} of the adapter in {folder} asks for images with sides of {side} pixels. The limit is "
            f"{limits.image_side}."
        )
    return None if blocks is None else tuple(blocks)
