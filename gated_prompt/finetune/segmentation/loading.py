# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a segmentation run left, as a model. Several adapters of prompts on one backbone, in one mixed batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME
from safetensors.torch import load_file
from torch import Tensor, nn

import gated_prompt

from ...errors import GatedPromptError
from ...files.header import read_config
from ...segmentation.predictor import MaskPredictor

TENSORS, HEAD = "trained.safetensors", "classifier."


def load_segmenter(folder: Path, predictor: MaskPredictor) -> nn.Module:
    """The model of a folder's predictor with what was trained, in eval mode.

    Raises:
        GatedPromptError: the backbone cannot be loaded, or what was trained does not fit it.
    """
    base: Any = predictor.load_base()
    if _holds_prompts(folder):
        return gated_prompt.load(base, folder).eval()
    if (folder / CONFIG_NAME).is_file():
        return PeftModel.from_pretrained(base, folder).eval()
    try:
        tensors = load_file(folder / TENSORS)
        own = {name for name in base.state_dict() if name.startswith(HEAD)}
        if not own <= tensors.keys():
            raise GatedPromptError(f"{folder / TENSORS} lacks {sorted(own - tensors.keys())[0]}; train again")
        base.load_state_dict({**base.state_dict(), **tensors})
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise GatedPromptError(f"{folder / TENSORS} does not fit {predictor.backbone!r}: {reason}") from error
    return base.eval()


class Segmenters(nn.Module):
    """The model of one folder, or several adapters of prompts on one backbone, in one mixed batch.

    Its output has `logits` (B, A x K, h, w): those of the first adapter, then those of the second, and so on.
    """

    def __init__(self, members: Mapping[str, tuple[Path, MaskPredictor]]) -> None:
        super().__init__()
        self.labels = list(members)
        (folder, self.predictor), *others = members.values()
        model: Any = load_segmenter(folder, self.predictor)
        self.names = ["default", *(f"adapter{number}" for number in range(1, len(members)))]
        for name, (other, _) in zip(self.names[1:], others, strict=True):
            gated_prompt.load(model, other, name)
        self.model = model
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.patch_size = int(base.patch_size)

    def forward(self, pixel_values: Tensor) -> Any:
        if len(self.names) == 1:
            return self.model(pixel_values)
        names = [name for name in self.names for _ in range(len(pixel_values))]
        logits = self.model(pixel_values.repeat(len(self.names), 1, 1, 1), adapter_names=names).logits
        return SimpleNamespace(logits=logits.unflatten(0, (len(self.names), -1)).transpose(0, 1).flatten(1, 2))


def group_segmenters(found: Mapping[str, tuple[Path, MaskPredictor]]) -> list[Segmenters]:
    """One for all adapters of prompts that share backbone, blocks and number of classes. One for each other."""
    shared: dict[str, dict[str, tuple[Path, MaskPredictor]]] = {}
    for label, (folder, one) in found.items():
        same = (one.backbone, one.base, list(one.blocks), one.head, one.preparation, len(one.names))
        shared.setdefault(repr(same) if _holds_prompts(folder) else label, {})[label] = (folder, one)
    return [Segmenters(members).eval() for members in shared.values()]


def labels_of(folders: Sequence[str]) -> dict[str, str]:
    """A name for each folder that can be one of a folder itself: its last part, or all of it where two are alike."""
    last = [Path(folder).resolve().name for folder in folders]
    return {
        folder: name if last.count(name) == 1 else "_".join(Path(folder).resolve().parts[1:])
        for folder, name in zip(folders, last, strict=True)
    }


def _holds_prompts(folder: Path) -> bool:
    config = folder / CONFIG_NAME
    return config.is_file() and read_config(config).get("peft_type") == "GATED_PROMPT"
