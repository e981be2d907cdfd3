# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What reaches the first block with prompts, computed once per image and kept while a method is trained."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import GatedPromptError
from ..training.token_cache import CachedPrefix, cache_prefix
from .experiment import Experiment
from .pixels import Pixels
from .recipe import PROMPT_METHODS


@dataclass(frozen=True)
class KeptTokens:
    """Tokens of the training and validation images, and their labels."""

    train: CachedPrefix
    validation: CachedPrefix


def keep_tokens(experiment: Experiment, method: str, folder: Path) -> KeptTokens | None:
    """Write the tokens to `folder`.

    None where blocks have to run in every epoch: they have prompts or weights to train, the head reads them, images
    are augmented, or training cannot start at a later block, which is printed.
    """
    first = experiment.prompts_of(method).insert_at
    if experiment.args.augment or method not in PROMPT_METHODS or not first or experiment.blocks[0] < first:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    accelerator, model = experiment.start(method, experiment.args.seeds[0], folder)
    try:
        return KeptTokens(
            *(
                cache_prefix(
                    model, Pixels(part, experiment.backbone.predictor), folder / f"{name}.safetensors", accelerator
                )
                for name, part in (("train", experiment.parts.train), ("validation", experiment.parts.validation))
            )
        )
    except GatedPromptError as error:
        accelerator.print(f"the blocks below the prompts run in every epoch: {error}")
        return None
