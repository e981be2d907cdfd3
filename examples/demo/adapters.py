# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One frozen backbone with every adapter of a folder, and what they say about an image."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from gated_prompt import GatedPromptConfig
from gated_prompt.errors import DataError
from gated_prompt.plots import PromptAttention, prompt_attention
from gated_prompt.sharing.image_settings import image_settings
from gated_prompt.sharing.quoting import plain
from gated_prompt.shipped import SHIPPED_BACKBONE
from gated_prompt.transforms import ResizeSquare

ADAPTERS = Path(__file__).parent / "adapters"
HEAD = ("base_model.model.classifier.weight", "base_model.model.classifier.bias")


@dataclass(frozen=True)
class Adapter:
    """What an adapter's card says: the names of its classes, and its accuracy on its own test part if it was noted."""

    class_names: list[str]
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Collection:
    """The backbone with all adapters (in eval mode), what is known of them, and how images become pixels."""

    model: PeftModel
    adapters: dict[str, Adapter]
    transform: ResizeSquare

    @torch.no_grad()
    def predict(self, image: Image.Image, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Probability of each class by each of these adapters, from one forward of one mixed batch.

        The batch holds the image once for each adapter, and `adapter_names` says which adapter reads which copy.
        """
        if not names:
            return {}
        pixels = self.transform(image).expand(len(names), -1, -1, -1)
        logits = self.model(pixel_values=pixels, adapter_names=list(names)).logits
        found = {}
        for row, name in zip(logits, names, strict=True):
            classes = self.adapters[name].class_names
            # Without the rows that widened the head, so the numbers are those of the adapter alone.
            found[name] = dict(zip(classes, row[: len(classes)].softmax(0).tolist(), strict=True))
        return found

    def attention(self, image: Image.Image, name: str) -> PromptAttention:
        """Where this adapter's prompts and CLS look, in every block that holds prompts."""
        return prompt_attention(self.model, self.transform(image)[None], adapter_name=name)


def load_collection(backbone: Path = SHIPPED_BACKBONE, folder: Path = ADAPTERS) -> Collection:
    """The backbone with every adapter that has a subfolder of its own in `folder`, in the order of their names.

    Heads may have different numbers of classes. The logits of one batch are one tensor, so each head is widened to
    the largest of them by rows of zeros; `Collection.predict` cuts off what they answer.

    Raises:
        DataError: there are no adapters.
        GatedPromptError: an adapter is damaged or does not fit the backbone.
    """
    sources = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CONFIG_NAME}"))}
    if not sources:
        raise DataError(f"{folder} holds no adapters; each needs a subfolder with {CONFIG_NAME} and the weights")
    configs = {name: GatedPromptConfig.from_pretrained(str(path)) for name, path in sources.items()}
    weights = {name: load_file(path / SAFETENSORS_WEIGHTS_NAME) for name, path in sources.items()}
    without = [name for name, tensors in weights.items() if not tensors.keys() >= set(HEAD)]
    if without:
        raise DataError(f"the adapter {without[0]} brings no classification head, so there is nothing to show of it")
    counts = {name: len(tensors[HEAD[0]]) for name, tensors in weights.items()}
    widest = max(counts.values())
    base = AutoModelForImageClassification.from_pretrained(
        backbone, num_labels=widest, ignore_mismatched_sizes=True, dtype="float32"
    )
    # Copies, which remember neither the narrower heads in the files nor where the backbone lay.
    copies = {name: replace(config) for name, config in configs.items()}
    for config in copies.values():
        config.base_model_name_or_path = None
    (first, config), *others = copies.items()
    model: PeftModel = get_peft_model(base, config, adapter_name=first)
    for name, config in others:
        model.add_adapter(name, config)
    for name, tensors in weights.items():
        for key in HEAD:
            tensors[key] = F.pad(tensors[key], (0, 0) * (tensors[key].ndim - 1) + (0, widest - counts[name]))
        set_peft_model_state_dict(model, tensors, adapter_name=name)
    adapters = {name: read_card(path / "README.md", counts[name]) for name, path in sources.items()}
    return Collection(model.eval(), adapters, _transform(backbone))


def read_card(path: Path, count: int) -> Adapter:
    """Class names and accuracy from a model card as the training scripts write it.

    Names that are missing, or not as many as the head has classes, are replaced by numbers.
    """
    if not path.is_file():
        return Adapter([f"class {index}" for index in range(count)], None)
    card = ModelCard.load(path)
    line = re.search(r"^- Classes: (.+)$", card.text, re.MULTILINE)
    names = plain(line[1]).split(", ") if line else []
    if len(set(names)) != count:
        names = [f"class {index}" for index in range(count)]
    scores = [result.metric_value for result in card.data.eval_results or [] if result.metric_type == "accuracy"]
    return Adapter(names, scores[0] if scores else None)


def _transform(backbone: Path) -> ResizeSquare:
    """Straight resize to the backbone's size, as in training; photos are averaged when they shrink."""
    wanted = image_settings(str(backbone))
    return ResizeSquare(wanted.mean, wanted.std, wanted.side, "antialias", round_to_bytes=True)
