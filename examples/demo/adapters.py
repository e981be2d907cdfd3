# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One frozen backbone with every adapter and probe of a folder, and what they say about an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image

from gated_prompt import GatedPromptError, gates
from gated_prompt.architecture.names import BASE
from gated_prompt.errors import DataError, UnsupportedOperationError
from gated_prompt.plots import PromptAttention, prompt_attention
from gated_prompt.serving.contents import is_servable, used
from gated_prompt.serving.pool import AdapterPool, load_pool
from gated_prompt.serving.resident import Resident
from gated_prompt.shipped import SHIPPED_BACKBONE

ADAPTERS = Path(__file__).parent / "adapters"
MEMORY = 2**30  # bytes for all adapters. They stay in memory
LONGEST_SIDE = 1024  # pixels that an adapter may ask for


@dataclass(frozen=True)
class Adapter:
    """Names of the classes, and the accuracy on the adapter's own test part if its card notes one."""

    class_names: list[str]
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Collection:
    """The backbone with all adapters (in eval mode), what is known of them, and the folders that were left out."""

    pool: AdapterPool
    residents: dict[str, Resident]
    adapters: dict[str, Adapter]
    skipped: dict[str, str]

    @property
    def model(self) -> PeftModel:
        """The backbone with the prompts of all adapters, each under the key of its resident."""
        return self.pool.model

    def pixels(self, image: Image.Image, name: str) -> torch.Tensor:
        """The image (3, H, W) as this adapter's training prepared it."""
        return self.residents[name].predictor.transform()(image)

    def predict(self, image: Image.Image, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Scores of each class by each of these adapters, from one mixed batch where they read the same size."""
        prepared = {name: self.pixels(image, name) for name in names}
        found: dict[str, dict[str, float]] = {}
        for shape in dict.fromkeys(pixels.shape for pixels in prepared.values()):
            same = [name for name in names if prepared[name].shape == shape]
            pixels = torch.stack([prepared[name] for name in same])
            logits = self.pool.logits(pixels, [self.residents[name] for name in same])
            found |= {name: self._scores(name, row) for name, row in zip(same, logits, strict=True)}
        return {name: found[name] for name in names}

    def _scores(self, name: str, logits: torch.Tensor) -> dict[str, float]:
        predictor = self.residents[name].predictor
        found = dict(predictor.answer(logits, len(predictor.names)))
        return {one: found[one] for one in predictor.names}

    def has_gates(self, name: str) -> bool:
        """Whether there are gates to show: probes have none, nor have prompts that are replaced in each block."""
        key = self.residents[name].key
        return key != BASE and len(gates(self.model, key)) > 0

    def attention(self, image: Image.Image, name: str) -> PromptAttention | None:
        """Where this adapter's prompts and CLS look, in every block that holds prompts. None: they look nowhere."""
        key = self.residents[name].key
        if key == BASE:
            return None
        try:
            return prompt_attention(self.model, self.pixels(image, name)[None], adapter_name=key)
        except UnsupportedOperationError:  # prompts with zero start have no queries
            return None


def load_collection(backbone: Path | str = SHIPPED_BACKBONE, folder: Path = ADAPTERS) -> Collection:
    """The backbone with every adapter or probe that has a subfolder of its own in `folder`, in the order of the names.

    Of the output of `train`, what the run said to use is taken. What cannot be shown is left out, with the reason.

    Raises:
        DataError: nothing can be shown.
        GatedPromptError: the backbone cannot be loaded.
    """
    pool = load_pool(str(backbone), MEMORY, LONGEST_SIDE)
    residents, adapters, skipped = {}, {}, {}
    for path in sorted(path for path in folder.glob("*") if path.is_dir()):
        place = used(path)
        if not is_servable(place):
            skipped[path.name] = "it has neither an adapter nor a probe"
            continue
        try:
            residents[path.name] = pool.hold(place).__enter__()  # for as long as the page runs
        except GatedPromptError as error:
            skipped[path.name] = str(error)
        else:
            adapters[path.name] = Adapter(residents[path.name].predictor.names, read_accuracy(place / "README.md"))
    if not adapters:
        reasons = "".join(f"\n{name}: {reason}" for name, reason in skipped.items())
        raise DataError(f"{folder} holds no adapters that can be shown; each needs a subfolder of its own{reasons}")
    return Collection(pool, residents, adapters, skipped)


def read_accuracy(path: Path) -> float | None:
    """The accuracy in a model card as the training scripts write it. None: it has none."""
    if not path.is_file():
        return None
    results = ModelCard.load(path).data.eval_results or []
    return next((result.metric_value for result in results if result.metric_type == "accuracy"), None)
