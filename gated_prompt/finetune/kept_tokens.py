# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What reaches the first block with prompts, computed once per image and kept while a method is trained."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import GatedPromptError
from ..training.token_cache import CachedPrefix, cache_prefix
from .experiment import Bench
from .pixels import Pixels
from .recipe import PROMPT_METHODS


@dataclass(frozen=True)
class KeptTokens:
    """Tokens of the training and validation images, and their labels."""

    train: CachedPrefix
    validation: CachedPrefix


def keep_tokens(bench: Bench, method: str, folder: Path) -> KeptTokens | None:
    """Write the tokens to `folder`.

    None where blocks have to run in every epoch: they have prompts or weights to train, images are augmented, or
    training cannot start at a later block, which is printed.
    """
    if bench.args.augment or method not in PROMPT_METHODS or not bench.prompts_of(method).insert_at:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    accelerator, model = bench.start(method, bench.args.seeds[0], folder)
    try:
        return KeptTokens(
            *(
                cache_prefix(model, Pixels(part, bench.predictor), folder / f"{name}.safetensors", accelerator)
                for name, part in (("train", bench.parts.train), ("validation", bench.parts.validation))
            )
        )
    except GatedPromptError as error:
        accelerator.print(f"the blocks below the prompts run in every epoch: {error}")
        return None
