# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""From a folder to answers in one call, for whatever `gated-prompt train` leaves: prompts, LoRA, a probe, a model.

transformers' `AutoModelForImageClassification` and PEFT's `AutoPeftModel` take the number of classes from the base
model's own config alone. There is no place beside an adapter where they would look for its classes.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from peft.utils import CONFIG_NAME
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import DamagedAdapterError, GatedPromptError
from ..files.header import read_config
from ..images import decode, shown_path, to_rgb
from ..predictor import Predictor, read_predictor
from .loading import load

if TYPE_CHECKING:
    from ..segmentation.predictor import MaskPredictor

TENSORS = "trained.safetensors"
HEAD = ("classifier.weight", "classifier.bias")  # of a linear one


@dataclass(frozen=True)
class Classifier:
    """A trained model with its preprocessing and class names, as `load_classifier` returns it.

    Attributes:
        model: the model in eval mode. Its config has id2label, label2id and the problem type.
        predictor: what `predictor.json` says.
        transform: turns an RGB image into float (3, height, width).
    """

    model: nn.Module
    predictor: Predictor
    transform: Callable[[Image.Image], Tensor]

    @torch.inference_mode()
    def __call__(self, image: str | os.PathLike[str] | bytes | Image.Image, top: int = 3) -> list[tuple[str, float]]:
        """Return the names of the best `top` classes of one image and their scores, the best first. Of numbers, all.

        Raises:
            DataError: the image cannot be read.
        """
        if isinstance(image, Image.Image):
            rgb = to_rgb(image)
        else:
            rgb = decode(image if isinstance(image, bytes) else Path(image))
        pixels = self.transform(rgb)[None].to(next(self.model.parameters()).device)
        return self.predictor.answer(self.model(pixel_values=pixels).logits[0].float().cpu(), top)


def load_classifier(
    folder: str | os.PathLike[str],
    backbone: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> Classifier:
    """Load a trained classifier with its backbone, in eval mode.

    Args:
        folder: a folder with `predictor.json`, the output folder of a run, or the id of a Hub repository.
        backbone: folder or Hub id of the backbone. None means the one that was used in training.
        revision: branch, tag or commit of the repository.
        token: access token of the Hub. None means the one of `hf auth login`.
        trust_remote_code: run Python code that the backbone brings.

    Raises:
        GatedPromptError: the folder or the backbone cannot be loaded, or they do not fit.

    Example:
        ```python
        classifier = gated_prompt.load_classifier("runs/photos")
        classifier("new.jpg", top=1)  # [("cat", 0.93)]
        ```
    """
    place = Path(folder)
    if not place.is_dir():
        try:
            place = Path(snapshot_download(os.fspath(folder), revision=revision, token=token))
        except (OSError, ValueError) as error:
            raise GatedPromptError(
                f"there is no folder {shown_path(folder)!r}, and the Hub gave no such repository "
                f"({str(error).splitlines()[0]})"
            ) from error
    place = used_folder(place)
    predictor = read_predictor(place)
    if backbone is not None:
        predictor = replace(predictor, backbone=os.fspath(backbone))
    return Classifier(load_trained(place, predictor, trust_remote_code), predictor, predictor.transform())


def used_folder(folder: Path) -> Path:
    """Return the folder that a run said to use if `folder` is its output folder, else `folder` itself.

    Raises:
        GatedPromptError: the run has not finished.
    """
    results = folder / "results.json"
    if not results.is_file():
        if (folder / "settings.json").is_file():
            raise GatedPromptError(
                f"the run in {shown_path(folder)!r} has not finished. Repeat its gated-prompt train command to resume "
                "it."
            )
        return folder
    try:
        return folder / str(json.loads(results.read_text())["use"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedAdapterError(f"{results} is not what gated-prompt train writes. Train again.") from error


def holds_prompts(folder: Path) -> bool:
    """Whether what a folder has is an adapter of gated prompts."""
    config = folder / CONFIG_NAME
    return config.is_file() and read_config(config).get("peft_type") == "GATED_PROMPT"


def load_trained(
    folder: Path, predictor: "Predictor | MaskPredictor", trust_remote_code: bool = False, base: Any = None
) -> nn.Module:
    """Load the model of a folder's predictor with what was trained, in eval mode. `base` is what `load_base` returned.

    Raises:
        GatedPromptError: the backbone cannot be loaded, or what was trained does not fit it.
    """
    base = predictor.load_base(trust_remote_code=trust_remote_code) if base is None else base
    if holds_prompts(folder):
        return load(base, folder).eval()
    if (folder / CONFIG_NAME).is_file():
        return PeftModel.from_pretrained(base, folder).eval()
    try:
        tensors = load_file(folder / TENSORS)
        missing = [name for name in base.state_dict() if name.startswith("classifier.") and name not in tensors]
        if missing:
            raise GatedPromptError(f"{folder / TENSORS} lacks {missing[0]}. Train again.")
        base.load_state_dict({**base.state_dict(), **tensors})
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise GatedPromptError(f"{folder / TENSORS} does not fit {predictor.backbone!r}: {reason}") from error
    return base.eval()
