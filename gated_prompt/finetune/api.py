# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`train` and `probe_blocks`: what the commands of the same names do, for notebooks and scripts."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GatedPromptError
from .arguments import parse

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn


@dataclass(frozen=True)
class TrainResult:
    """What `train` found.

    Attributes:
        sentence: what to use, how good it is on images that it has not seen, and how many it was fitted to.
        output: the folder with everything.
        use: the folder in it that holds what to use.
        report: a page to look at.
        table: a row for each method and seed, the probe first, as in results.json.
        results: the content of results.json.
    """

    sentence: str
    output: Path
    use: Path
    report: Path
    table: Sequence[Mapping[str, Any]] = field(repr=False)
    results: Mapping[str, Any] = field(repr=False)

    def predict(
        self, images: Sequence["str | os.PathLike[str] | Image.Image"], top: int = 3
    ) -> list[list[tuple[str, float]]]:
        """Return the names of the best `top` classes of each image and their scores. Of numbers, all.

        Raises:
            DataError: an image cannot be read.
        """
        from ..sharing.classifier import load_classifier

        classifier = load_classifier(self.use)
        return [classifier(image, top) for image in images]


@dataclass(frozen=True)
class BlockProbes:
    """What `probe_blocks` found: what the frozen backbone can do.

    Attributes:
        sentence: the blocks to read, how good their probe is, and how many images it was fitted to.
        blocks: for each block from 0, `nearest_neighbours` and `linear_probe` on images that they have not seen.
        block_sets: probes of several blocks together.
        read_blocks: indices of the blocks that were chosen.
        probe: the folder of their probe, which `predict` takes.
    """

    sentence: str
    blocks: Sequence[Mapping[str, Any]]
    block_sets: Sequence[Mapping[str, Any]] = field(repr=False)
    read_blocks: Sequence[int]
    probe: Path


def train(**options: Any) -> TrainResult:
    """Fine-tune on images, as `gated-prompt train` does, with the same options and defaults.

    Args:
        options: those that `gated-prompt train --help` lists.

    Returns:
        What to use, how good it is, and where everything lies.

    Raises:
        GatedPromptError: an option is unknown or wrong, or images or backbone cannot be used.

    Example:
        ```python
        result = gated_prompt.finetune.train(train_dir="photos", backbone="facebook/dinov2-small")
        print(result.sentence)
        result.predict(["new.jpg"])
        ```
    """
    arguments = parse(words(options))
    from . import pipeline

    results = pipeline.train(*arguments)
    output = Path(arguments[1].output_dir)
    return TrainResult(
        results["sentence"], output, output / results["use"], output / "report.html", results["comparison"], results
    )


def probe_blocks(
    backbone: "str | os.PathLike[str] | nn.Module", images: str | os.PathLike[str] | None = None, **options: Any
) -> BlockProbes:
    """Fit nearest neighbours and linear probes on every block of a frozen backbone, as `gated-prompt probe` does.

    Args:
        backbone: Hub id, folder, or a loaded model without a head whose `name_or_path` says where it is from.
        images: a folder with a subfolder for each class. None if `options` name a table or a data set.
        options: those that `gated-prompt probe --help` lists.

    Returns:
        The scores of each block, and the blocks to read.

    Raises:
        GatedPromptError: an option is unknown or wrong, or images or backbone cannot be used.

    Example:
        ```python
        probes = gated_prompt.finetune.probe_blocks("facebook/dinov2-small", "photos")
        print(probes.read_blocks, probes.sentence)
        ```
    """
    loaded = None if isinstance(backbone, str | os.PathLike) else backbone
    name = getattr(loaded, "name_or_path", None) if loaded is not None else os.fspath(backbone)  # type: ignore[arg-type]
    if not name:
        raise GatedPromptError(
            "the model has no name_or_path, which says how images are prepared for it. Give a path."
        )
    given = {"backbone": name} | ({} if images is None else {"train_dir": os.fspath(images)}) | options
    arguments = parse(words(given))
    from . import pipeline

    stage = pipeline.probe(*arguments, loaded)
    results = pipeline.results_of(stage)
    return BlockProbes(
        results["sentence"],
        results["blocks"],
        results["block_sets"],
        results["read_blocks"],
        stage.output / "probe",
    )


def words(options: Mapping[str, Any]) -> list[str]:
    """Write options as a command line, so that both go through the same checks."""
    found = []
    for name, value in options.items():
        if isinstance(value, list | tuple):
            found += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            found.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return found
