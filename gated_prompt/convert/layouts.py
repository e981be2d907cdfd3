# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Detect which code wrote a state dict, and separate the encoder from the other tensors.

Every layout uses timm's names for the encoder's tensors, behind a prefix. Only tensors that are not part of an encoder
are removed here, each with a reason.
"""

import re
from dataclasses import dataclass

import torch

from ..errors import ConversionError
from .reading import StateDict

KINDS = ("mae", "moco", "dino", "timm", "official")
MOCO_ARCHITECTURES = ("vit_small", "vit_base", "vit_conv_small", "vit_conv_base")  # as recorded in MoCo v3's files
DINO_LINEAR = {"linear.weight", "linear.bias"}
FROM_ADAPTER = "part of the adapter: convert it with `adapter`"


@dataclass(frozen=True)
class Layout:
    """`prefix`: start of the encoder's names. `extras`: (name pattern, reason to remove it) of the other tensors."""

    kind: str
    prefix: str
    extras: tuple[tuple[str, str], ...] = ()


PREFIXED = (
    Layout(
        "moco",
        "base_encoder.",
        (
            (r"momentum_encoder\.", "MoCo v3's momentum encoder: a moving average that serves as the training target"),
            (r"predictor\.", "MoCo v3's predictor: used in pre-training only"),
            (r"base_encoder\.head\.", "MoCo v3's projection head: used in pre-training only"),
        ),
    ),
    Layout("dino", "backbone.", ((r"head\.", "DINO's projection head: used in pre-training only"),)),
    Layout(
        "official",
        "enc.",
        (
            (r"enc\.(prompt_embeddings|deep_prompt_embeddings|gate_logit|temp)$", FROM_ADAPTER),
            (r"head\.last_layer\.(weight|bias)$", FROM_ADAPTER),
        ),
    ),
)
MAE = Layout("mae", "", ((r"mask_token$|decoder_", "MAE's decoder: used in pre-training only"),))


@dataclass(frozen=True)
class Encoder:
    """An encoder's tensors by timm's names, and the file's other tensors, `extras`, by their names in the file.

    `prefix` + timm's name is the name in the file. `reasons` says why each of the `extras` was removed.
    """

    kind: str
    prefix: str
    tensors: dict[str, torch.Tensor]
    extras: dict[str, torch.Tensor]
    reasons: dict[str, str]
    notes: list[str]


def split_state_dict(state: StateDict, asked: str | None = None) -> Encoder:
    """Extract the encoder from a state dict. `asked` is one of `KINDS`, or None to detect it from the names.

    Raises:
        ConversionError: the layout is not that of the requested kind, or some names belong to no layout.
    """
    if asked is not None and asked not in KINDS:
        raise ConversionError(f"kind is {asked!r}, expected one of {', '.join(KINDS)}, or None to detect it")
    wrapper = "module." if all(name.startswith("module.") for name in state.tensors) else ""  # of DataParallel
    tensors = {name.removeprefix(wrapper): tensor for name, tensor in state.tensors.items()}
    if set(tensors) <= DINO_LINEAR:
        raise ConversionError(
            "the file contains only DINO's linear classifier, which reads tokens of several blocks, or CLS and the "
            "mean patch together. The head of ViTForImageClassification cannot read these. Convert the backbone's "
            "file."
        )
    layout = _recognise(tensors, state, wrapper, asked)
    encoder: dict[str, torch.Tensor] = {}
    extras: dict[str, torch.Tensor] = {}
    reasons: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        reason = next((why for pattern, why in layout.extras if re.match(pattern, name)), None)
        if reason is not None:
            extras[wrapper + name], reasons[wrapper + name] = tensor, reason
        elif name.startswith(layout.prefix):
            encoder[name.removeprefix(layout.prefix)] = tensor
        else:
            unknown.append(wrapper + name)
    if unknown:
        raise ConversionError(
            f"unexpected key(s) in a checkpoint of kind {layout.kind!r}, whose encoder's keys start with "
            f"{wrapper + layout.prefix!r}: {', '.join(sorted(unknown)[:10])}"
        )
    return Encoder(layout.kind, wrapper + layout.prefix, encoder, extras, reasons, _notes(state))


def _recognise(tensors: dict[str, torch.Tensor], state: StateDict, wrapper: str, asked: str | None) -> Layout:
    for layout in PREFIXED:
        if any(name.startswith(layout.prefix) for name in tensors):
            if asked not in (None, layout.kind):
                raise ConversionError(
                    f"the checkpoint has keys that start with {wrapper + layout.prefix!r}, so it is of kind "
                    f"{layout.kind!r}, not {asked!r}. Leave the kind out."
                )
            return layout
    if asked == "official":
        raise ConversionError(
            "no key starts with 'enc.', so this is not a run checkpoint of the official code (its `last_model.pth`)"
        )
    if asked in (None, "mae") and any(re.match(pattern, name) for name in tensors for pattern, _ in MAE.extras):
        return MAE
    if asked is not None:
        return Layout(asked, "")
    linear_evaluation = state.container == "state_dict" and state.arch in MOCO_ARCHITECTURES
    return Layout("moco" if linear_evaluation else "timm", "")


def _notes(state: StateDict) -> list[str]:
    notes = []
    if state.container == "teacher":
        notes.append("the weights are the teacher's, which DINO itself evaluates")
    if state.container == "student":
        notes.append("the weights are the student's: the file has no teacher")
    if state.others:
        notes.append(f"only {state.container!r} of the file is used, not {', '.join(state.others)}")
    return notes
