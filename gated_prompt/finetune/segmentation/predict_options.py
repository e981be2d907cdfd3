# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The options of `gated-prompt predict` where the adapters give label maps; told without torch."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class MaskPredictArguments:
    """What to segment with what."""

    images: list[str] = field(default_factory=list, metadata={"help": "images, and folders of images"})
    adapters: list[str] = field(default_factory=list, metadata={"help": "output folders of gated-prompt train"})
    output: str = field(default="masks", metadata={"help": "folder to write; a folder in it for each adapter"})
    overlays: bool = field(default=True, metadata={"help": "write each label map over its image as well"})
    backbone: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the backbone; default: the one used in training"}
    )
    export: str | None = field(
        default=None,
        metadata={"help": "write this ONNX file instead, for images of the size of the first of --images"},
    )


def gives_masks(argv: Sequence[str] | None) -> bool:
    """Whether the adapters in these arguments of `gated-prompt predict` are about label maps."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--adapters", nargs="+", default=[])
    asked, _ = parser.parse_known_args(argv)
    return any(problem_of(Path(name)) == "segmentation" for name in asked.adapters)


def problem_of(folder: Path) -> str | None:
    """What an output folder, or a folder in it, says it is about; None: nothing."""
    for name in ("results.json", "predictor.json"):
        try:
            return str(json.loads((folder / name).read_text(encoding="utf-8"))["problem"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
