# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Images with label maps, whatever stores them and wherever they came from."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...errors import DataError
from ...images import decode
from ..image_set import Picture
from .class_table import ClassTable, count_values, from_values


@dataclass(frozen=True)
class LabelMap:
    """A mask that is read on demand: `read` returns its stored values (H, W). `lossy`: its file format is JPEG."""

    name: str
    read: Callable[[], np.ndarray]
    lossy: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Unchecked:
    """Pairs as they were found.

    Attributes:
        table: the classes. None if the masks have to be read to find them.
        skipped: files without a partner, with the reason.
    """

    pictures: Sequence[Picture]
    masks: Sequence[LabelMap]
    table: ClassTable | None
    source: str
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskSet:
    """Images with their label maps, all of which have been checked.

    Attributes:
        pictures: the images, read on demand.
        masks: the label map of each.
        table: the classes.
        counts: pixels of each class in each label map, int64 (N, K).
        sizes: height and width of each, int64 (N, 2).
        source: where they came from, for reports.
        skipped: what was left out -> why.
    """

    pictures: Sequence[Picture]
    masks: Sequence[LabelMap]
    table: ClassTable
    counts: Tensor
    sizes: Tensor
    source: str
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def names(self) -> tuple[str, ...]:
        return self.table.names

    def take(self, indices: Sequence[int]) -> "MaskSet":
        """Some of the images, in this order."""
        rows = list(indices)
        return replace(
            self,
            pictures=[self.pictures[i] for i in rows],
            masks=[self.masks[i] for i in rows],
            counts=self.counts[rows],
            sizes=self.sizes[rows],
        )

    def image(self, index: int) -> Image.Image:
        """The RGB image, turned as its label map is."""
        return picture_like(self.pictures[index], (int(self.sizes[index][0]), int(self.sizes[index][1])))

    def labels(self, index: int) -> Tensor:
        """Labels (H, W) uint8: classes, and `IGNORE`."""
        mask = self.masks[index]
        return torch.from_numpy(self.table.labels(mask.read(), mask.name))


def together(first: MaskSet, second: MaskSet) -> MaskSet:
    """The images of both, which have the same classes."""
    return replace(
        first,
        pictures=[*first.pictures, *second.pictures],
        masks=[*first.masks, *second.masks],
        counts=torch.cat((first.counts, second.counts)),
        sizes=torch.cat((first.sizes, second.sizes)),
        skipped={**first.skipped, **second.skipped},
    )


def picture_like(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """The image as a label map of `size` (height, width) shows it: upright, or as it is stored.

    Cameras store photos sideways with a note, which some annotation tools follow and others do not.

    Raises:
        DataError: it has another size either way, or cannot be decoded.
    """
    content = picture.read()
    image = decode(content, picture.name)
    if (image.height, image.width) != size:
        image = decode(content, picture.name, upright=False)
    if (image.height, image.width) != size:
        raise SizeError(
            f"the image {picture.name} has {image.width} x {image.height} pixels and its mask {size[1]} x {size[0]} "
            "(width x height). Expected a label for each pixel."
        )
    return image


class SizeError(DataError):
    """An image and its mask differ in size."""


@dataclass(frozen=True)
class _Seen:
    """What one pair was found to be. `fault` says why it cannot be used."""

    size: tuple[int, int]
    values: Counter[int]
    identity: bytes
    fault: str | None = None


def check(found: Unchecked, ignore: Sequence[str], show: bool, table: ClassTable | None = None) -> tuple[MaskSet, str]:
    """Look at every pair. Return those that can be decoded, and a fingerprint of contents and classes.

    `table`: the classes where they are known from another part. `ignore`: those that are not to count. `show`: a
    progress bar.

    Raises:
        DataError: no image can be read, a mask has another size than its image or a value that is no class, or masks
            are JPEG files and nobody said what their classes are.
    """
    with ThreadPoolExecutor() as threads:
        pairs = threads.map(_look, found.pictures, found.masks)
        seen = list(tqdm(pairs, "check masks", len(found.pictures), leave=False, disable=not show))
    whole = [place for place, one in enumerate(seen) if one.fault is None]
    broken = {found.pictures[p].name: one.fault for p, one in enumerate(seen) if one.fault is not None}
    if not whole:
        raise DataError(
            f"none of the {len(seen)} images of {found.source} can be read. {next(iter(broken.values()), '')}"
        )
    if table is None:
        table = found.table
        if table is None:
            _refuse_lossy([found.masks[place] for place in whole])
            table = from_values(value for place in whole for value in seen[place].values)
        table = table.without(ignore)
    for place in whole:
        table.check(seen[place].values, found.masks[place].name)
    sha = hashlib.sha256(repr((table.names, table.values, table.ignored)).encode())
    for place in whole:
        sha.update(seen[place].identity)
    counts = torch.tensor([[seen[place].values[value] for value in table.values] for place in whole])
    return (
        MaskSet(
            [found.pictures[place] for place in whole],
            [found.masks[place] for place in whole],
            table,
            counts,
            torch.tensor([seen[place].size for place in whole]),
            found.source,
            {**found.skipped, **{name: str(reason) for name, reason in broken.items()}},
        ),
        sha.hexdigest(),
    )


def refuse_empty_classes(data: MaskSet) -> None:
    """Raises:
    DataError: a class has no pixel in any of the label maps, so nothing could be learned about it.
    """
    empty = [name for name, pixels in zip(data.names, data.counts.sum(0).tolist(), strict=True) if not pixels]
    if empty:
        raise DataError(
            f"no pixel of {data.source} is labelled as {', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}. "
            f"Label some, or leave the class out with --ignore_label {' '.join(empty)}."
        )


def _look(picture: Picture, mask: LabelMap) -> _Seen:
    values = mask.read()
    height, width = values.shape
    try:
        picture_like(picture, (height, width))
        identity = picture.identity()
    except SizeError:
        raise
    except DataError as error:
        return _Seen((0, 0), Counter(), b"", str(error))
    content = hashlib.sha256(identity + np.ascontiguousarray(values).tobytes()).digest()
    return _Seen((height, width), Counter(dict(zip(*count_values(values), strict=True))), content)


def _refuse_lossy(masks: Sequence[LabelMap]) -> None:
    lossy = next((mask.name for mask in masks if mask.lossy()), None)
    if lossy is not None:
        raise DataError(
            f"the mask {lossy} is a JPEG, which changes values along edges, so they no longer name its classes. "
            "Save masks as PNG."
        )
