# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The file beside trained weights that says how to use them: what predict.py reads."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gated_prompt import GatedPromptError
from recipe.reporting import write_json

FILE, PROBE = "predictor.json", "probe.safetensors"


@dataclass(frozen=True)
class Predictor:
    """How to go from a picture to scores.

    Attributes:
        kind: "probe" (weight and bias on features of a block), "adapter" or "model".
        method: that trained it.
        backbone: Hub id or folder.
        base: settings of the backbone's config that differ.
        block: block that is read, from 0.
        preparation: of pictures.
        problem: "classes", "labels" or "numbers".
        names: of the outputs.
        pooling: what a model without prompts reads: "patches", their mean, or None, what its class reads.
    """

    kind: str
    method: str
    backbone: str
    base: dict[str, Any]
    block: int
    preparation: dict[str, Any]
    problem: str
    names: list[str]
    pooling: str | None = None

    def on(self, backbone: str) -> "Predictor":
        """The same with the backbone at another place."""
        return replace(self, backbone=backbone)

    def write(self, folder: Path) -> None:
        """Write it beside the weights, atomically."""
        write_json(folder / FILE, asdict(self))


def read_predictor(folder: Path) -> Predictor:
    """Read what `write` wrote.

    Raises:
        GatedPromptError: the folder has no such file, or one with other content.
    """
    try:
        return Predictor(**json.loads((folder / FILE).read_text()))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise GatedPromptError(
            f"cannot read {folder / FILE} ({error}); give a folder that train_images.py wrote, such as runs/images"
        ) from error
